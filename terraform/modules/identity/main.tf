#   worker      what the jobs are while they run: reads messages, files and secrets, writes the outputs
#   launcher    what people and CI become to start, update and drain jobs
#   scheduler   what Cloud Scheduler is when it starts the batch
# Each right is given on the one resource it is for. Those below `project` have no smaller resource, or, of BigQuery and Dataflow, are jobs of the project.
resource "google_service_account" "worker" {
  project      = var.project
  account_id   = "${var.name}-worker"
  display_name = "${var.name}: workers of the Dataflow jobs"
}

resource "google_service_account" "launcher" {
  project      = var.project
  account_id   = "${var.name}-launcher"
  display_name = "${var.name}: starts, updates and drains jobs"
}

resource "google_service_account" "scheduler" {
  project      = var.project
  account_id   = "${var.name}-scheduler"
  display_name = "${var.name}: starts the batch by the clock"
}

locals {
  accounts = {
    worker    = google_service_account.worker
    launcher  = google_service_account.launcher
    scheduler = google_service_account.scheduler
  }
  starters = ["launcher", "scheduler"]

  on_project = merge(
    # viewer: the launcher, which is the worker too, looks whether the stream runs already.
    { for role in concat(["roles/dataflow.worker", "roles/dataflow.viewer", "roles/bigquery.jobUser", "roles/bigquery.readSessionUser"], var.worker_roles) : "worker ${role}" => { account = "worker", role = role } },
    # Starting a job asks for machine types, which dataflow.developer does not cover.
    merge([for account in local.starters : { for role in ["roles/dataflow.developer", "roles/compute.viewer"] : "${account} ${role}" => { account = account, role = role } }]...),
  )

  # objectUser: read, write, replace, delete; no ACLs, no policies. legacyBucketReader: Beam looks at the bucket itself before it writes.
  own_buckets = merge([for holds, roles in {
    lake    = ["roles/storage.objectUser", "roles/storage.legacyBucketReader"]
    staging = ["roles/storage.objectUser", "roles/storage.legacyBucketReader"]
    archive = ["roles/storage.objectViewer", "roles/storage.legacyBucketReader"]
    } : { for role in roles : "worker ${holds} ${role}" => { account = "worker", bucket = var.buckets[holds], role = role } }
  ]...)
  # Template and spec: read by whoever starts a job, and by the job.
  read_buckets = merge([for bucket in var.config_buckets : {
    for account in ["worker", "launcher", "scheduler"] : "${account} ${bucket} roles/storage.objectViewer" => { account = account, bucket = bucket, role = "roles/storage.objectViewer" }
  }]...)

  image = var.image_repository
}

resource "google_project_iam_member" "grant" {
  for_each = local.on_project
  project  = var.project
  role     = each.value.role
  member   = "serviceAccount:${local.accounts[each.value.account].email}"
}

resource "google_storage_bucket_iam_member" "grant" {
  for_each = merge(local.own_buckets, local.read_buckets)
  bucket   = each.value.bucket
  role     = each.value.role
  member   = "serviceAccount:${local.accounts[each.value.account].email}"
}

# viewer: Dataflow asks which topic the subscription belongs to, and a new start how long it keeps messages; subscriber may seek.
resource "google_pubsub_subscription_iam_member" "worker" {
  for_each     = toset(["roles/pubsub.subscriber", "roles/pubsub.viewer"])
  project      = var.project
  subscription = var.subscription
  role         = each.value
  member       = "serviceAccount:${google_service_account.worker.email}"
}

resource "google_pubsub_topic_iam_member" "worker" {
  for_each = toset(concat([var.dead_letter_topic], var.publish_topics))
  project  = split("/", each.value)[1]
  topic    = split("/", each.value)[3]
  role     = "roles/pubsub.publisher"
  member   = "serviceAccount:${google_service_account.worker.email}"
}

resource "google_pubsub_topic_iam_member" "producer" {
  for_each = toset(var.producers)
  project  = var.project
  topic    = split("/", var.topic)[3]
  role     = "roles/pubsub.publisher"
  member   = each.value
}

resource "google_bigquery_dataset_iam_member" "worker" {
  project    = var.project
  dataset_id = var.dataset
  role       = "roles/bigquery.dataEditor"
  member     = "serviceAccount:${google_service_account.worker.email}"
}

resource "google_artifact_registry_repository_iam_member" "worker" {
  project    = local.image.project
  location   = local.image.location
  repository = local.image.repository
  role       = "roles/artifactregistry.reader"
  member     = "serviceAccount:${google_service_account.worker.email}"
}

resource "google_secret_manager_secret_iam_member" "worker" {
  for_each  = toset(var.secrets)
  project   = split("/", each.value)[1]
  secret_id = split("/", each.value)[3]
  role      = "roles/secretmanager.secretAccessor"
  member    = "serviceAccount:${google_service_account.worker.email}"
}

# Who starts a job hands it the worker's account, and must be allowed to.
resource "google_service_account_iam_member" "acts_as_worker" {
  for_each           = toset(local.starters)
  service_account_id = google_service_account.worker.name
  role               = "roles/iam.serviceAccountUser"
  member             = "serviceAccount:${local.accounts[each.value].email}"
}

resource "google_service_account_iam_member" "becomes_launcher" {
  for_each           = toset(var.launchers)
  service_account_id = google_service_account.launcher.name
  role               = "roles/iam.serviceAccountTokenCreator"
  member             = each.value
}
