output "topic" {
  description = "Where producers publish."
  value       = module.messaging.topic
}

output "places" {
  description = "What `place_parameters` can tell the spec: lake, archive, temp, subscription, dead_letter_topic, dataset."
  value       = local.places
}

output "buckets" {
  description = "Names of the buckets: lake, archive, config, staging."
  value       = module.storage.buckets
}

output "subscriptions" {
  description = "Short names of the subscriptions: job, archive, dead_letters."
  value       = module.messaging.subscriptions
}

output "tables" {
  description = "PROJECT.DATASET.TABLE of the tables made here."
  value       = module.warehouse.tables
}

output "accounts" {
  description = "The service accounts: worker, launcher, scheduler. Give the worker what else the spec reads."
  value       = module.identity.emails
}

output "jobs" {
  description = "Names of the jobs that are there: stream, batch."
  value       = module.jobs.names
}

output "stream_job_id" {
  description = "Of the streaming job; null where there is none."
  value       = module.jobs.stream_job_id
}

output "alerts" {
  description = "Titles of the alerts."
  value       = one(module.alerts[*].policies)
}

output "console" {
  description = "Where to look: the jobs, the alerts."
  value = {
    jobs   = "https://console.cloud.google.com/dataflow/jobs?project=${var.project}"
    alerts = "https://console.cloud.google.com/monitoring/alerting?project=${var.project}"
  }
}
