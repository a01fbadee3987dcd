# Alerts: on what, above which value, who is told.
mock_provider "google" {
  override_during = plan
}

variables {
  project               = "demo-project"
  name                  = "flights"
  labels                = { pipeline = "flights" }
  notification_channels = ["projects/demo-project/notificationChannels/1"]
  subscriptions         = { job = "flights", archive = "flights-archive", dead_letters = "flights-dead-letters" }
  dead_letter_topic     = "flights-dead-letters"
  has_stream            = true
  has_batch             = true
  thresholds            = { freshness_s = 301, backlog_messages = 1001, archive_s = 1801, dead_letters_per_minute = 60, data_freshness_s = 901, system_lag_s = 601, absent_s = 900 }
}

run "every_threshold_is_where_it_was_said" {
  command = plan
  module { source = "./modules/alerts" }

  assert {
    condition = { for name, policy in google_monitoring_alert_policy.measured : name => policy.conditions[0].condition_threshold[0].threshold_value } == {
      freshness = 301, backlog = 1001, archive = 1801, dead_letters = 1, data_freshness = 901, system_lag = 601, failed = 0
    }
    error_message = "Thresholds: ${jsonencode({ for name, policy in google_monitoring_alert_policy.measured : name => policy.conditions[0].condition_threshold[0].threshold_value })}."
  }

  assert {
    condition     = alltrue([for policy in google_monitoring_alert_policy.measured : policy.conditions[0].condition_threshold[0].comparison == "COMPARISON_GT"])
    error_message = "More is worse, everywhere."
  }

  assert {
    condition     = google_monitoring_alert_policy.absent[0].conditions[0].condition_absent[0].duration == "900s"
    error_message = "A job that says nothing is missed after absent_s."
  }
}

run "each_alert_looks_at_its_own_thing" {
  command = plan
  module { source = "./modules/alerts" }

  assert {
    condition = { for name, policy in google_monitoring_alert_policy.measured : name => policy.conditions[0].condition_threshold[0].filter } == {
      freshness      = "metric.type = \"pubsub.googleapis.com/subscription/oldest_unacked_message_age\" AND resource.type = \"pubsub_subscription\" AND resource.labels.subscription_id = \"flights\""
      backlog        = "metric.type = \"pubsub.googleapis.com/subscription/num_undelivered_messages\" AND resource.type = \"pubsub_subscription\" AND resource.labels.subscription_id = \"flights\""
      archive        = "metric.type = \"pubsub.googleapis.com/subscription/oldest_unacked_message_age\" AND resource.type = \"pubsub_subscription\" AND resource.labels.subscription_id = \"flights-archive\""
      dead_letters   = "metric.type = \"pubsub.googleapis.com/topic/send_message_operation_count\" AND resource.type = \"pubsub_topic\" AND resource.labels.topic_id = \"flights-dead-letters\""
      data_freshness = "metric.type = \"dataflow.googleapis.com/job/data_watermark_age\" AND resource.type = \"dataflow_job\" AND resource.labels.job_name = \"flights-stream\""
      system_lag     = "metric.type = \"dataflow.googleapis.com/job/system_lag\" AND resource.type = \"dataflow_job\" AND resource.labels.job_name = \"flights-stream\""
      failed         = "metric.type = \"dataflow.googleapis.com/job/is_failed\" AND resource.type = \"dataflow_job\" AND resource.labels.job_name = monitoring.regex.full_match(\"flights-(stream|batch)\")"
    }
    error_message = "A filter is another: ${jsonencode({ for name, policy in google_monitoring_alert_policy.measured : name => policy.conditions[0].condition_threshold[0].filter })}."
  }

  assert {
    condition     = google_monitoring_alert_policy.not_started[0].conditions[0].condition_matched_log[0].filter == "resource.type = \"cloud_scheduler_job\" AND resource.labels.job_id = \"flights-batch\" AND severity >= ERROR"
    error_message = "A batch that was not started is in the scheduler's log."
  }
}

run "people_are_told_and_know_where_to_look" {
  command = plan
  module { source = "./modules/alerts" }

  assert {
    condition     = alltrue([for policy in concat(values(google_monitoring_alert_policy.measured), google_monitoring_alert_policy.absent, google_monitoring_alert_policy.not_started) : policy.notification_channels == tolist(["projects/demo-project/notificationChannels/1"]) && length(policy.documentation[0].content) > 60 && policy.user_labels["pipeline"] == "flights"])
    error_message = "Every alert tells the channels, says where to look, and has its label."
  }

  assert {
    condition     = google_monitoring_alert_policy.not_started[0].alert_strategy[0].notification_rate_limit[0].period == "3600s"
    error_message = "Cloud Monitoring refuses an alert on a log without a limit."
  }
}

run "what_is_not_there_is_not_watched" {
  command = plan
  module { source = "./modules/alerts" }

  variables {
    has_stream = false
    has_batch  = false
  }

  assert {
    condition     = toset(keys(google_monitoring_alert_policy.measured)) == toset(["freshness", "backlog", "archive", "dead_letters", "failed"]) && length(google_monitoring_alert_policy.absent) == 0 && length(google_monitoring_alert_policy.not_started) == 0
    error_message = "No alert on a job that does not exist."
  }
}
