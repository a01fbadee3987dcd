# The two jobs: both as the worker, without public addresses, told the same spec.
mock_provider "google" {
  override_during = plan
}

mock_provider "google-beta" {
  override_during = plan
}

variables {
  project         = "demo-project"
  region          = "europe-west3"
  name            = "flights"
  labels          = { pipeline = "flights" }
  template_path   = "gs://the-config/templates/flights-1.json"
  image           = "europe-west3-docker.pkg.dev/demo-project/images/beam-pipelines:1"
  spec_path       = "gs://the-config/specs/flights-1.yaml"
  parameters      = { lake = "gs://the-lake", reach = "both" }
  staging_bucket  = "the-staging"
  worker_email    = "worker@demo-project.iam.gserviceaccount.com"
  scheduler_email = "scheduler@demo-project.iam.gserviceaccount.com"
  subnetwork      = "regions/europe-west3/subnetworks/flights-workers"
  stream          = { enabled = true, parameters = { reach = "stream" }, machine_type = "n2-standard-2", num_workers = 1, max_workers = 5, at_least_once = false, replace_running = false, transform_names = null }
  batch           = { template_path = "gs://the-config/templates/flights-batch-1.json", spec_path = "gs://the-config/specs/flights-batch-1.json", schedule = "15 2 * * *", time_zone = "Europe/Berlin", paused = false, parameters = { reach = "batch" }, machine_type = "n2-standard-4", max_workers = 10 }
}

run "the_stream_is_the_worker_and_private" {
  command = plan
  module { source = "./modules/jobs" }

  assert {
    condition     = google_dataflow_flex_template_job.stream[0].service_account_email == "worker@demo-project.iam.gserviceaccount.com" && google_dataflow_flex_template_job.stream[0].ip_configuration == "WORKER_IP_PRIVATE" && google_dataflow_flex_template_job.stream[0].subnetwork == "regions/europe-west3/subnetworks/flights-workers"
    error_message = "Not the default account of the project, no public address."
  }

  assert {
    condition     = google_dataflow_flex_template_job.stream[0].on_delete == "drain" && google_dataflow_flex_template_job.stream[0].enable_streaming_engine == true
    error_message = "What was read is finished before the job ends."
  }

  assert {
    condition     = google_dataflow_flex_template_job.stream[0].parameters == tomap({ spec = "gs://the-config/specs/flights-1.yaml", mode = "stream", lake = "gs://the-lake", reach = "stream" })
    error_message = "Spec, mode, the common parameters, and its own over them: ${jsonencode(google_dataflow_flex_template_job.stream[0].parameters)}."
  }

  assert {
    condition     = google_dataflow_flex_template_job.stream[0].temp_location == "gs://the-staging/temp" && google_dataflow_flex_template_job.stream[0].staging_location == "gs://the-staging/staging"
    error_message = "Only `temp/` expires, so temporary files go there and staged ones do not."
  }

  assert {
    condition     = google_dataflow_flex_template_job.stream[0].labels == tomap({ pipeline = "flights", mode = "stream" })
    error_message = "The job has its labels."
  }

  assert {
    condition     = length(google_dataflow_flex_template_job.stream[0].additional_experiments) == 0 && google_dataflow_flex_template_job.stream[0].kms_key_name == null
    error_message = "Nothing is asked for that was not said."
  }
}

run "the_batch_is_started_by_the_scheduler_s_account" {
  command = plan
  module { source = "./modules/jobs" }

  assert {
    condition     = google_cloud_scheduler_job.batch[0].http_target[0].uri == "https://dataflow.googleapis.com/v1b3/projects/demo-project/locations/europe-west3/flexTemplates:launch" && google_cloud_scheduler_job.batch[0].http_target[0].http_method == "POST"
    error_message = "The method that launches flex templates."
  }

  assert {
    condition     = google_cloud_scheduler_job.batch[0].http_target[0].oauth_token[0].service_account_email == "scheduler@demo-project.iam.gserviceaccount.com" && length(google_cloud_scheduler_job.batch[0].http_target[0].oidc_token) == 0
    error_message = "Google's APIs want an OAuth token."
  }

  assert {
    condition     = google_cloud_scheduler_job.batch[0].schedule == "15 2 * * *" && google_cloud_scheduler_job.batch[0].time_zone == "Europe/Berlin"
    error_message = "By the clock that was said."
  }

  assert {
    condition = jsondecode(base64decode(google_cloud_scheduler_job.batch[0].http_target[0].body)) == {
      launchParameter = {
        jobName              = "flights-batch"
        containerSpecGcsPath = "gs://the-config/templates/flights-batch-1.json"
        parameters           = { spec = "gs://the-config/specs/flights-batch-1.json", mode = "batch", lake = "gs://the-lake", reach = "batch" }
        environment = {
          serviceAccountEmail  = "worker@demo-project.iam.gserviceaccount.com"
          sdkContainerImage    = "europe-west3-docker.pkg.dev/demo-project/images/beam-pipelines:1"
          tempLocation         = "gs://the-staging/temp"
          stagingLocation      = "gs://the-staging/staging"
          subnetwork           = "regions/europe-west3/subnetworks/flights-workers"
          ipConfiguration      = "WORKER_IP_PRIVATE"
          machineType          = "n2-standard-4"
          maxWorkers           = 10
          additionalUserLabels = { pipeline = "flights", mode = "batch" }
        }
      }
    }
    error_message = "The request: ${base64decode(google_cloud_scheduler_job.batch[0].http_target[0].body)}."
  }
}

run "either_job_can_be_left_out" {
  command = plan
  module { source = "./modules/jobs" }

  variables {
    stream = { enabled = false, parameters = {}, machine_type = "n2-standard-2", num_workers = 1, max_workers = 5, at_least_once = false, replace_running = false, transform_names = null }
    batch  = { template_path = "gs://the-config/templates/flights-batch-1.json", spec_path = "gs://the-config/specs/flights-batch-1.json", schedule = null, time_zone = "Etc/UTC", paused = false, parameters = {}, machine_type = "n2-standard-4", max_workers = 10 }
  }

  assert {
    condition     = length(google_dataflow_flex_template_job.stream) == 0 && length(google_cloud_scheduler_job.batch) == 0 && output.names == {} && output.stream_job_id == null
    error_message = "No job where none was asked for."
  }
}

run "at_least_once_and_renamed_steps_are_passed_on" {
  command = plan
  module { source = "./modules/jobs" }

  variables {
    stream = { enabled = true, parameters = {}, machine_type = "n2-standard-2", num_workers = 1, max_workers = 5, at_least_once = true, replace_running = true, transform_names = { Old = "New" } }
  }

  assert {
    condition     = google_dataflow_flex_template_job.stream[0].additional_experiments == tolist(["streaming_mode_at_least_once"]) && google_dataflow_flex_template_job.stream[0].transform_name_mapping == tomap({ Old = "New" })
    error_message = "Both reach the job."
  }

  assert {
    condition     = google_dataflow_flex_template_job.stream[0].parameters["replace_running"] == "true" && google_dataflow_flex_template_job.stream[0].parameters["at_least_once"] == "true" && !strcontains(base64decode(google_cloud_scheduler_job.batch[0].http_target[0].body), "replace_running")
    error_message = "The launcher of the stream, and only that, is told that it replaces a job, and in which mode."
  }
}
