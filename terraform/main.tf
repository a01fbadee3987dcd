# From messages to tables: everything that one pipeline needs in one project. Read it from top to bottom; each module is one folder below modules/.
data "google_project" "this" {
  project_id = var.project
}

locals {
  number   = data.google_project.this.number
  location = coalesce(var.location, var.region)
  labels   = merge(var.labels, { pipeline = var.name, made_by = "terraform" })
  dataset  = replace(var.name, "-", "_")

  services = ["artifactregistry", "bigquery", "bigquerystorage", "cloudkms", "cloudscheduler", "compute", "dataflow", "iam", "iamcredentials", "logging", "monitoring", "pubsub", "secretmanager", "storage"]

  image            = regex("^(?P<location>[a-z0-9-]+)-docker\\.pkg\\.dev/(?P<project>[^/]+)/(?P<repository>[^/]+)/", var.image)
  written_tables   = { for name, table in jsondecode(var.tables_file == null ? "{}" : file(var.tables_file)) : name => merge(table, { schema = jsonencode(table.schema) }) }
  has_stream       = var.deploy && var.stream.enabled
  batch_paths      = { template_path = coalesce(var.batch.template_path, var.template_path), spec_path = coalesce(var.batch.spec_path, var.spec_path) }
  has_batch        = var.deploy && var.batch.schedule != null
  place_parameters = { for place, parameter in var.place_parameters : parameter => local.places[place] }

  places = {
    lake              = "gs://${module.storage.buckets["lake"]}"
    archive           = "gs://${module.storage.buckets["archive"]}/${var.archive.prefix}"
    temp              = "gs://${module.storage.buckets["staging"]}/temp"
    subscription      = "projects/${var.project}/subscriptions/${module.messaging.subscriptions["job"]}"
    dead_letter_topic = module.messaging.dead_letter_topic
    dataset           = "${var.project}.${module.warehouse.dataset}"
  }
}

resource "google_project_service" "used" {
  for_each           = toset(var.enable_apis ? local.services : [])
  project            = var.project
  service            = "${each.value}.googleapis.com"
  disable_on_destroy = false # another pipeline may use it
}

# Google's own accounts come with the first use of a service, which is too late for the rights that they need.
resource "google_project_service_identity" "of" {
  provider   = google-beta
  for_each   = toset(["pubsub", "dataflow"])
  project    = var.project
  service    = "${each.value}.googleapis.com"
  depends_on = [google_project_service.used]
}

data "google_storage_project_service_account" "of" {
  count   = var.kms_key == null ? 0 : 1
  project = var.project
}

data "google_bigquery_default_service_account" "of" {
  count   = var.kms_key == null ? 0 : 1
  project = var.project
}

module "encryption" {
  source         = "./modules/encryption"
  project_number = local.number
  kms_key        = var.kms_key
  depends_on     = [google_project_service_identity.of, data.google_storage_project_service_account.of, data.google_bigquery_default_service_account.of]
}

module "network" {
  source     = "./modules/network"
  project    = var.project
  region     = var.region
  name       = var.name
  subnetwork = var.subnetwork
  depends_on = [google_project_service.used]
}

module "storage" {
  source                 = "./modules/storage"
  project                = var.project
  name                   = var.name
  location               = local.location
  labels                 = local.labels
  kms_key                = module.encryption.kms_key
  deletion_protection    = var.deletion_protection
  undo_days              = var.undo_days
  temporary_days         = var.temporary_days
  archive_retention_days = var.archive.retention_days
  depends_on             = [google_project_service.used]
}

module "messaging" {
  source                     = "./modules/messaging"
  project                    = var.project
  project_number             = local.number
  region                     = var.region
  name                       = var.name
  labels                     = local.labels
  kms_key                    = module.encryption.kms_key
  ack_deadline_s             = var.messages.ack_deadline_s
  retention_days             = var.messages.retention_days
  dead_letter_retention_days = var.messages.dead_letter_retention_days
  max_delivery_attempts      = var.messages.max_delivery_attempts
  archive = {
    bucket         = module.storage.buckets["archive"]
    prefix         = var.archive.prefix
    max_duration_s = var.archive.max_duration_s
    max_bytes      = var.archive.max_bytes
  }
  depends_on = [google_project_service_identity.of]
}

module "warehouse" {
  source              = "./modules/warehouse"
  project             = var.project
  name                = var.name
  dataset             = local.dataset
  location            = local.location
  labels              = local.labels
  kms_key             = module.encryption.kms_key
  deletion_protection = var.deletion_protection
  tables              = merge(local.written_tables, var.tables)
  depends_on          = [google_project_service.used]
}

module "identity" {
  source            = "./modules/identity"
  project           = var.project
  name              = var.name
  buckets           = module.storage.buckets
  config_buckets    = distinct([for path in [var.template_path, var.spec_path, local.batch_paths.template_path, local.batch_paths.spec_path] : split("/", path)[2]])
  subscription      = module.messaging.subscriptions["job"]
  topic             = module.messaging.topic
  dead_letter_topic = module.messaging.dead_letter_topic
  publish_topics    = var.publish_topics
  dataset           = module.warehouse.dataset
  image_repository  = local.image
  secrets           = var.secrets
  producers         = var.producers
  launchers         = var.launchers
  worker_roles      = var.worker_roles
  depends_on        = [google_project_service.used]
}

module "jobs" {
  source          = "./modules/jobs"
  project         = var.project
  region          = var.region
  name            = var.name
  labels          = local.labels
  template_path   = var.template_path
  image           = var.image
  spec_path       = var.spec_path
  parameters      = merge(local.place_parameters, var.parameters)
  staging_bucket  = module.storage.buckets["staging"]
  worker_email    = module.identity.emails["worker"]
  scheduler_email = module.identity.emails["scheduler"]
  subnetwork      = module.network.subnetwork
  kms_key         = module.encryption.kms_key
  stream          = merge(var.stream, { enabled = local.has_stream })
  batch           = merge(var.batch, local.batch_paths, { schedule = local.has_batch ? var.batch.schedule : null })
  depends_on      = [module.identity, module.network] # a job that starts before its rights are there fails
}

module "alerts" {
  source                = "./modules/alerts"
  count                 = var.deploy ? 1 : 0
  project               = var.project
  name                  = var.name
  labels                = local.labels
  notification_channels = var.notification_channels
  subscriptions         = module.messaging.subscriptions
  dead_letter_topic     = module.messaging.topics["dead_letters"]
  has_stream            = local.has_stream
  has_batch             = local.has_batch
  thresholds            = var.thresholds
  depends_on            = [google_project_service.used]
}
