# A stream from messages to tables with what must be said, and nothing more.
#   terraform init && terraform apply -var project=my-project
variable "project" {
  description = "The project's id."
  type        = string
}

module "flights" {
  source        = "../../"
  project       = var.project
  region        = "europe-west3"
  name          = "flights"
  image         = "europe-west3-docker.pkg.dev/${var.project}/images/beam-pipelines:1.0.0"
  template_path = "gs://${var.project}-flights-config/templates/flights-1.0.0.json"
  spec_path     = "gs://${var.project}-flights-config/specs/flights-1.0.0.yaml"
}

output "topic" {
  description = "Where producers publish."
  value       = module.flights.topic
}
