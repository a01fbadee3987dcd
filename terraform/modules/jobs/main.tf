locals {
  # What a job is told: the spec's own parameters, then which spec, which mode, and what the launcher asks of a stream.
  told = {
    stream = merge(var.parameters, var.stream.parameters, { spec = var.spec_path, mode = "stream" },
      var.stream.replace_running ? { replace_running = "true" } : {},
      var.stream.at_least_once ? { at_least_once = "true" } : {},
    )
    batch = merge(var.parameters, var.batch.parameters, { spec = var.batch.spec_path, mode = "batch" })
  }

  temp_location    = "gs://${var.staging_bucket}/temp"
  staging_location = "gs://${var.staging_bucket}/staging"
  ip_configuration = "WORKER_IP_PRIVATE"

  launch = {
    jobName              = "${var.name}-batch" # always the same: Dataflow refuses a second one beside it, so that two batches never overlap
    containerSpecGcsPath = var.batch.template_path
    parameters           = local.told.batch
    environment = { for option, value in {
      serviceAccountEmail  = var.worker_email
      sdkContainerImage    = var.image
      tempLocation         = local.temp_location
      stagingLocation      = local.staging_location
      subnetwork           = var.subnetwork
      ipConfiguration      = local.ip_configuration
      machineType          = var.batch.machine_type
      maxWorkers           = var.batch.max_workers
      kmsKeyName           = var.kms_key
      additionalUserLabels = merge(var.labels, { mode = "batch" })
    } : option => value if value != null }
  }
}

# A change of template, parameters or workers updates the running job in place; a change of `name` or `region` is a new one.
resource "google_dataflow_flex_template_job" "stream" {
  provider = google-beta
  count    = var.stream.enabled ? 1 : 0

  project                      = var.project
  region                       = var.region
  name                         = "${var.name}-stream"
  labels                       = merge(var.labels, { mode = "stream" })
  container_spec_gcs_path      = var.template_path
  parameters                   = local.told.stream
  service_account_email        = var.worker_email
  sdk_container_image          = var.image
  temp_location                = local.temp_location
  staging_location             = local.staging_location
  subnetwork                   = var.subnetwork
  ip_configuration             = local.ip_configuration
  machine_type                 = var.stream.machine_type
  num_workers                  = var.stream.num_workers
  max_workers                  = var.stream.max_workers
  autoscaling_algorithm        = "THROUGHPUT_BASED"
  enable_streaming_engine      = true
  kms_key_name                 = var.kms_key
  additional_experiments       = var.stream.at_least_once ? ["streaming_mode_at_least_once"] : []
  transform_name_mapping       = var.stream.transform_names
  on_delete                    = "drain" # what was read is finished before the job ends
  skip_wait_on_job_termination = false
}

resource "google_cloud_scheduler_job" "batch" {
  count            = var.batch.schedule == null ? 0 : 1
  project          = var.project
  region           = var.region
  name             = "${var.name}-batch"
  description      = "Starts the batch of ${var.name} from its flex template."
  schedule         = var.batch.schedule
  time_zone        = var.batch.time_zone
  paused           = var.batch.paused
  attempt_deadline = "180s"

  # Safe to repeat: a launch whose answer was lost is running under its name, and the second is refused.
  retry_config {
    retry_count          = 3
    min_backoff_duration = "60s"
  }

  http_target {
    http_method = "POST"
    uri         = "https://dataflow.googleapis.com/v1b3/projects/${var.project}/locations/${var.region}/flexTemplates:launch"
    headers     = { "Content-Type" = "application/json" }
    body        = base64encode(jsonencode({ launchParameter = local.launch }))

    oauth_token {
      service_account_email = var.scheduler_email
      scope                 = "https://www.googleapis.com/auth/cloud-platform"
    }
  }
}
