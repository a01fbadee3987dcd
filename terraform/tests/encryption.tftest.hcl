# With a key everything at rest is encrypted by it, and every service may use it; without one nothing is asked for.
mock_provider "google" {
  override_during = plan
}

variables {
  project             = "demo-project"
  project_number      = "123456789012"
  region              = "europe-west3"
  location            = "europe-west3"
  name                = "flights"
  dataset             = "flights"
  labels              = { pipeline = "flights" }
  deletion_protection = true
  kms_key             = "projects/keys-project/locations/europe-west3/keyRings/r/cryptoKeys/k"
}

run "every_service_that_keeps_data_may_use_the_key" {
  command = plan
  module { source = "./modules/encryption" }

  assert {
    condition = toset([for grant in google_kms_crypto_key_iam_member.service : "${grant.member} ${grant.role} ${grant.crypto_key_id}"]) == toset([
      for account in [
        "service-123456789012@gcp-sa-pubsub.iam.gserviceaccount.com", "service-123456789012@dataflow-service-producer-prod.iam.gserviceaccount.com",
        "service-123456789012@compute-system.iam.gserviceaccount.com", "service-123456789012@gs-project-accounts.iam.gserviceaccount.com",
        "bq-123456789012@bigquery-encryption.iam.gserviceaccount.com",
      ] : "serviceAccount:${account} roles/cloudkms.cryptoKeyEncrypterDecrypter ${var.kms_key}"
    ])
    error_message = "Pub/Sub, Dataflow, its machines, Cloud Storage, BigQuery, and nobody else."
  }
}

run "without_a_key_nothing_is_granted" {
  command = plan
  module { source = "./modules/encryption" }
  variables { kms_key = null }

  assert {
    condition     = length(google_kms_crypto_key_iam_member.service) == 0 && output.kms_key == null
    error_message = "No key, no rights on one."
  }
}

run "buckets" {
  command = plan
  module { source = "./modules/storage" }

  variables {
    undo_days      = 14
    temporary_days = 14
  }

  assert {
    condition     = alltrue([for bucket in google_storage_bucket.bucket : bucket.encryption[0].default_kms_key_name == var.kms_key])
    error_message = "Every bucket."
  }
}

run "messages" {
  command = plan
  module { source = "./modules/messaging" }

  variables {
    ack_deadline_s             = 60
    retention_days             = 7
    dead_letter_retention_days = 7
    archive                    = { bucket = "the-archive", prefix = "raw/", max_duration_s = 300, max_bytes = 1000000 }
  }

  assert {
    condition     = alltrue([for topic in google_pubsub_topic.topic : topic.kms_key_name == var.kms_key])
    error_message = "Both topics; a subscription's messages are encrypted by its topic's key."
  }
}

run "tables" {
  command = plan
  module { source = "./modules/warehouse" }

  variables { tables = { rows = { schema = "[{\"name\": \"a\", \"type\": \"DATE\"}]", speed = true } } }

  assert {
    condition     = google_bigquery_dataset.dataset.default_encryption_configuration[0].kms_key_name == var.kms_key && alltrue([for table in google_bigquery_table.table : table.encryption_configuration[0].kms_key_name == var.kms_key])
    error_message = "The dataset, for tables that the pipeline makes, and every table made here."
  }
}

run "without_a_key_tables_say_nothing_of_one" {
  command = plan
  module { source = "./modules/warehouse" }

  variables {
    kms_key = null
    tables  = { rows = { schema = "[{\"name\": \"a\", \"type\": \"DATE\"}]" } }
  }

  assert {
    condition     = length(google_bigquery_dataset.dataset.default_encryption_configuration) == 0 && length(google_bigquery_table.table["rows"].encryption_configuration) == 0
    error_message = "An empty block would be refused."
  }
}
