# Data at rest is encrypted by the service that keeps it, so each service's own account must be able to use the key.
locals {
  services = {
    pubsub   = "service-${var.project_number}@gcp-sa-pubsub.iam.gserviceaccount.com"
    dataflow = "service-${var.project_number}@dataflow-service-producer-prod.iam.gserviceaccount.com"
    compute  = "service-${var.project_number}@compute-system.iam.gserviceaccount.com" # disks of workers
    storage  = "service-${var.project_number}@gs-project-accounts.iam.gserviceaccount.com"
    bigquery = "bq-${var.project_number}@bigquery-encryption.iam.gserviceaccount.com"
  }
}

resource "google_kms_crypto_key_iam_member" "service" {
  for_each      = var.kms_key == null ? {} : local.services
  crypto_key_id = var.kms_key
  role          = "roles/cloudkms.cryptoKeyEncrypterDecrypter"
  member        = "serviceAccount:${each.value}"
}
