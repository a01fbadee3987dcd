#   producers ──▶ topic ──┬──▶ subscription NAME ──▶ the streaming job
#                         └──▶ subscription NAME-archive ──▶ Avro files in the archive bucket
#   the job ──▶ topic NAME-dead-letters ──▶ subscription NAME-dead-letters, for people
locals {
  pubsub_agent = "serviceAccount:service-${var.project_number}@gcp-sa-pubsub.iam.gserviceaccount.com"
  topics       = { messages = var.name, dead_letters = "${var.name}-dead-letters" }
  day_s        = 86400
  retention    = "${var.retention_days * local.day_s}s"
  # The folder in which a spec with `archive: gs://BUCKET/PREFIX` looks for the messages of its subscription (`run --input archive`).
  source         = "projects/${var.project}/subscriptions/${var.name}"
  archive_folder = "${substr(trim(replace(local.source, "/[^A-Za-z0-9.-]+/", "_"), "._"), 0, 100)}-${substr(sha256(local.source), 0, 8)}/"
}

resource "google_pubsub_topic" "topic" {
  for_each                   = local.topics
  project                    = var.project
  name                       = each.value
  labels                     = var.labels
  kms_key_name               = var.kms_key
  message_retention_duration = local.retention # a subscription that is made later can go back that far

  message_storage_policy {
    allowed_persistence_regions = [var.region]
  }
}

resource "google_pubsub_subscription" "job" {
  project                    = var.project
  name                       = var.name
  topic                      = google_pubsub_topic.topic["messages"].id
  labels                     = var.labels
  ack_deadline_seconds       = var.ack_deadline_s
  message_retention_duration = local.retention
  # Dataflow removes repeats by itself, and Google advises against exactly-once delivery in front of it.
  enable_exactly_once_delivery = false

  expiration_policy {
    ttl = "" # never: without it a subscription that nobody pulls for a month is deleted, with its messages
  }

  dynamic "dead_letter_policy" {
    for_each = var.max_delivery_attempts[*]
    content {
      dead_letter_topic     = google_pubsub_topic.topic["dead_letters"].id
      max_delivery_attempts = dead_letter_policy.value
    }
  }
}

resource "google_pubsub_subscription" "archive" {
  project = var.project
  name    = "${var.name}-archive"
  topic   = google_pubsub_topic.topic["messages"].id
  labels  = var.labels
  # A file's messages are acknowledged when it is closed, so a file may not stay open for longer than this.
  ack_deadline_seconds       = max(10, var.archive.max_duration_s)
  message_retention_duration = local.retention

  cloud_storage_config {
    bucket                   = var.archive.bucket
    filename_prefix          = "${var.archive.prefix}${local.archive_folder}"
    filename_suffix          = ".avro"
    filename_datetime_format = "YYYY-MM-DD/hh_mm_ssZ"
    max_duration             = "${var.archive.max_duration_s}s"
    max_bytes                = var.archive.max_bytes

    avro_config {
      write_metadata   = true # message id, publish time, attributes, ordering key: what makes a row's identity
      use_topic_schema = false
    }
  }

  expiration_policy {
    ttl = ""
  }

  depends_on = [google_storage_bucket_iam_member.archive] # Pub/Sub looks for its rights when the subscription is made
}

resource "google_pubsub_subscription" "dead_letters" {
  project                    = var.project
  name                       = "${var.name}-dead-letters"
  topic                      = google_pubsub_topic.topic["dead_letters"].id
  labels                     = var.labels
  ack_deadline_seconds       = 60
  message_retention_duration = "${var.dead_letter_retention_days * local.day_s}s"

  expiration_policy {
    ttl = ""
  }
}

# Pub/Sub itself writes the archive and forwards what was delivered too often; it may do that and nothing else.
resource "google_storage_bucket_iam_member" "archive" {
  for_each = toset(["roles/storage.objectCreator", "roles/storage.legacyBucketReader"])
  bucket   = var.archive.bucket
  role     = each.value
  member   = local.pubsub_agent
}

resource "google_pubsub_topic_iam_member" "forwards" {
  count   = var.max_delivery_attempts == null ? 0 : 1
  project = var.project
  topic   = google_pubsub_topic.topic["dead_letters"].name
  role    = "roles/pubsub.publisher"
  member  = local.pubsub_agent
}

resource "google_pubsub_subscription_iam_member" "forwards" {
  count        = var.max_delivery_attempts == null ? 0 : 1
  project      = var.project
  subscription = google_pubsub_subscription.job.name
  role         = "roles/pubsub.subscriber"
  member       = local.pubsub_agent
}
