# Topic, subscriptions, and the archive that Pub/Sub writes by itself.
mock_provider "google" {
  override_during = plan
}

variables {
  project                    = "demo-project"
  project_number             = "123456789012"
  region                     = "europe-west3"
  name                       = "flights"
  labels                     = { pipeline = "flights" }
  ack_deadline_s             = 60
  retention_days             = 7
  dead_letter_retention_days = 14
  archive                    = { bucket = "the-archive", prefix = "raw/", max_duration_s = 300, max_bytes = 1000000 }
}

run "raw_messages_are_archived_with_their_identity" {
  command = plan
  module { source = "./modules/messaging" }

  assert {
    condition     = google_pubsub_subscription.archive.cloud_storage_config[0].bucket == "the-archive" && google_pubsub_subscription.archive.cloud_storage_config[0].filename_prefix == "raw/projects_demo-project_subscriptions_flights-4b49eb3e/" && google_pubsub_subscription.archive.cloud_storage_config[0].filename_suffix == ".avro"
    error_message = "The archive goes into its bucket, below its prefix, in the folder of the job's subscription."
  }

  assert {
    condition     = google_pubsub_subscription.archive.cloud_storage_config[0].avro_config[0].write_metadata == true && google_pubsub_subscription.archive.cloud_storage_config[0].avro_config[0].use_topic_schema == false
    error_message = "Avro with metadata: without message id and publish time a row has no identity."
  }

  assert {
    condition     = google_pubsub_subscription.archive.cloud_storage_config[0].max_duration == "300s" && google_pubsub_subscription.archive.cloud_storage_config[0].max_bytes == 1000000
    error_message = "A file is closed when it is told to be."
  }

  assert {
    condition     = google_pubsub_subscription.archive.ack_deadline_seconds >= 300
    error_message = "A file may not stay open for longer than the acknowledgement deadline; Pub/Sub refuses that."
  }

  assert {
    condition     = length(google_pubsub_subscription.archive.dead_letter_policy) == 0
    error_message = "The archive never gives a message up."
  }

  assert {
    condition = toset([for grant in google_storage_bucket_iam_member.archive : "${grant.member} ${grant.bucket} ${grant.role}"]) == toset([
      "serviceAccount:service-123456789012@gcp-sa-pubsub.iam.gserviceaccount.com the-archive roles/storage.objectCreator",
      "serviceAccount:service-123456789012@gcp-sa-pubsub.iam.gserviceaccount.com the-archive roles/storage.legacyBucketReader",
    ])
    error_message = "Pub/Sub's account creates objects in the archive and looks at the bucket; it cannot read, replace or delete them."
  }
}

run "the_job_has_a_subscription_of_its_own" {
  command = plan
  module { source = "./modules/messaging" }

  assert {
    condition     = google_pubsub_subscription.job.enable_exactly_once_delivery == false && length(google_pubsub_subscription.job.dead_letter_policy) == 0 && length(google_pubsub_subscription.job.retry_policy) == 0
    error_message = "Dataflow wants a plain subscription."
  }

  assert {
    condition     = length(google_pubsub_topic_iam_member.forwards) == 0 && length(google_pubsub_subscription_iam_member.forwards) == 0
    error_message = "Where Pub/Sub forwards nothing it has no right to."
  }

  assert {
    condition     = alltrue([for subscription in [google_pubsub_subscription.job, google_pubsub_subscription.archive, google_pubsub_subscription.dead_letters] : subscription.expiration_policy[0].ttl == ""])
    error_message = "No subscription expires, whether or not somebody reads it."
  }

  assert {
    condition     = google_pubsub_subscription.job.message_retention_duration == "604800s" && google_pubsub_subscription.archive.message_retention_duration == "604800s" && google_pubsub_subscription.dead_letters.message_retention_duration == "1209600s"
    error_message = "Messages are kept as long as was said."
  }

  assert {
    condition     = alltrue([for topic in google_pubsub_topic.topic : topic.message_storage_policy[0].allowed_persistence_regions == tolist(["europe-west3"])])
    error_message = "Messages stay in the region."
  }

  assert {
    condition     = alltrue([for made in concat(values(google_pubsub_topic.topic), [google_pubsub_subscription.job, google_pubsub_subscription.archive, google_pubsub_subscription.dead_letters]) : made.labels["pipeline"] == "flights"])
    error_message = "Everything has its label."
  }

  assert {
    condition     = output.topic == "projects/demo-project/topics/flights" && output.dead_letter_topic == "projects/demo-project/topics/flights-dead-letters" && output.subscriptions == { job = "flights", archive = "flights-archive", dead_letters = "flights-dead-letters" }
    error_message = "Names follow from the pipeline's."
  }
}

run "pubsub_may_forward_only_where_it_is_told_to" {
  command = plan
  module { source = "./modules/messaging" }

  variables { max_delivery_attempts = 10 }

  assert {
    condition     = google_pubsub_subscription.job.dead_letter_policy[0].max_delivery_attempts == 10
    error_message = "Ten attempts."
  }

  assert {
    condition     = google_pubsub_topic_iam_member.forwards[0].role == "roles/pubsub.publisher" && google_pubsub_topic_iam_member.forwards[0].topic == "flights-dead-letters" && google_pubsub_topic_iam_member.forwards[0].member == "serviceAccount:service-123456789012@gcp-sa-pubsub.iam.gserviceaccount.com"
    error_message = "Without this right forwarded messages are lost from sight."
  }

  assert {
    condition     = google_pubsub_subscription_iam_member.forwards[0].role == "roles/pubsub.subscriber" && google_pubsub_subscription_iam_member.forwards[0].subscription == "flights"
    error_message = "Without this right forwarded messages are never acknowledged."
  }
}
