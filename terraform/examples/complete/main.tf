# Both jobs, tables settled before the first row, a key of ours, and people who are told.
#   terraform init && terraform apply -var project=my-project -var kms_key=projects/…/cryptoKeys/… -var email=data@example.org
variable "project" {
  description = "The project's id."
  type        = string
}

variable "kms_key" {
  description = "The key of all data at rest, in europe-west3."
  type        = string
}

variable "email" {
  description = "Who is told of alerts."
  type        = string
}

resource "google_monitoring_notification_channel" "data" {
  project      = var.project
  display_name = "Data"
  type         = "email"
  labels       = { email_address = var.email }
}

module "flights" {
  source        = "../../"
  project       = var.project
  region        = "europe-west3"
  name          = "flights"
  image         = "europe-west3-docker.pkg.dev/${var.project}/images/beam-pipelines:1.0.0"
  template_path = "gs://${var.project}-flights-config/templates/flights-stream-1.0.0.json"
  spec_path     = "gs://${var.project}-flights-config/templates/flights-stream-1.0.0.spec-1f2e3d4c.json"

  # The spec has parameters `lake`, `subscription` and `refused` for the places that are made here.
  place_parameters = { lake = "lake", subscription = "subscription", dead_letter_topic = "refused" }

  stream = { max_workers = 8, parameters = { freshness = "1m" } }
  batch = {
    template_path = "gs://${var.project}-flights-config/templates/flights-batch-1.0.0.json"
    spec_path     = "gs://${var.project}-flights-config/templates/flights-batch-1.0.0.spec-5a6b7c8d.json"
    schedule      = "15 2 * * *"
    time_zone     = "Europe/Berlin"
    max_workers   = 20
  }

  tables_file = "${path.module}/tables.json"
  archive     = { max_duration_s = 120, retention_days = 1100 }
  messages    = { retention_days = 14 }

  kms_key   = var.kms_key
  secrets   = ["projects/${var.project}/secrets/flights-raw-key"]
  producers = ["serviceAccount:departures@${var.project}.iam.gserviceaccount.com"]
  launchers = ["group:data@example.org"]
  labels    = { team = "data", cost-centre = "4711" }

  notification_channels = [google_monitoring_notification_channel.data.name]
  thresholds            = { freshness_s = 120, dead_letters_per_minute = 10 }
}

output "places" {
  description = "What the spec is told."
  value       = module.flights.places
}

output "console" {
  description = "Where to look."
  value       = module.flights.console
}
