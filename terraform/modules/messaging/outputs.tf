output "topic" {
  description = "Where producers publish: projects/P/topics/T."
  value       = "projects/${var.project}/topics/${google_pubsub_topic.topic["messages"].name}" # known in a plan, as `id` is not
}

output "dead_letter_topic" {
  description = "Where the job and Pub/Sub put what was refused: projects/P/topics/T."
  value       = "projects/${var.project}/topics/${google_pubsub_topic.topic["dead_letters"].name}"
}

output "subscriptions" {
  description = "Short names: of the job, of the archive, for people who look at dead letters."
  value = {
    job          = google_pubsub_subscription.job.name
    archive      = google_pubsub_subscription.archive.name
    dead_letters = google_pubsub_subscription.dead_letters.name
  }
}

output "topics" {
  description = "Short names."
  value       = { for of, topic in google_pubsub_topic.topic : of => topic.name }
}
