output "policies" {
  description = "Titles of the alerts."
  value = sort(concat(
    values(google_monitoring_alert_policy.measured)[*].display_name,
    google_monitoring_alert_policy.absent[*].display_name,
    google_monitoring_alert_policy.not_started[*].display_name,
  ))
}
