# The root module: a handful of variables, and what they make of it.
mock_provider "google" {
  override_during = plan

  mock_data "google_project" {
    defaults = { number = "123456789012" }
  }
}

mock_provider "google-beta" {
  override_during = plan
}

override_resource {
  target          = module.identity.google_service_account.worker
  override_during = plan
  values          = { email = "flights-worker@demo-project.iam.gserviceaccount.com" }
}

override_resource {
  target          = module.identity.google_service_account.launcher
  override_during = plan
  values          = { email = "flights-launcher@demo-project.iam.gserviceaccount.com" }
}

override_resource {
  target          = module.identity.google_service_account.scheduler
  override_during = plan
  values          = { email = "flights-scheduler@demo-project.iam.gserviceaccount.com" }
}

variables {
  project       = "demo-project"
  region        = "europe-west3"
  name          = "flights"
  image         = "europe-west3-docker.pkg.dev/demo-project/images/beam-pipelines:1.0.0"
  template_path = "gs://demo-project-flights-config/templates/flights-1.0.0.json"
  spec_path     = "gs://demo-project-flights-config/specs/flights-1.0.0.yaml"
}

run "six_variables_make_a_stream" {
  command = plan

  assert {
    condition     = output.jobs == { stream = "flights-stream" }
    error_message = "A stream, and no batch until it has a schedule: ${jsonencode(output.jobs)}."
  }

  assert {
    condition = output.places == {
      lake              = "gs://demo-project-flights-lake"
      archive           = "gs://demo-project-flights-archive/raw/"
      temp              = "gs://demo-project-flights-staging/temp"
      subscription      = "projects/demo-project/subscriptions/flights"
      dead_letter_topic = "projects/demo-project/topics/flights-dead-letters"
      dataset           = "demo-project.flights"
    }
    error_message = "Places: ${jsonencode(output.places)}."
  }

  assert {
    condition     = output.accounts["worker"] == "flights-worker@demo-project.iam.gserviceaccount.com"
    error_message = "The worker has an account of its own."
  }

  assert {
    condition     = length(output.alerts) == 8
    error_message = "Seven that measure, and one that misses the job: ${jsonencode(output.alerts)}."
  }

  assert {
    condition     = contains(keys(google_project_service.used), "dataflow") && alltrue([for service in google_project_service.used : service.disable_on_destroy == false])
    error_message = "Services are enabled, and stay so for others."
  }
}

run "everything" {
  command = plan

  variables {
    name                  = "flights-eu"
    labels                = { team = "data" }
    batch                 = { schedule = "15 2 * * *", time_zone = "Europe/Berlin" }
    kms_key               = "projects/keys-project/locations/europe-west3/keyRings/r/cryptoKeys/k"
    notification_channels = ["projects/demo-project/notificationChannels/1"]
    messages              = { max_delivery_attempts = 10 }
    producers             = ["serviceAccount:web@other-project.iam.gserviceaccount.com"]
    publish_topics        = ["projects/other-project/topics/delays"]
    secrets               = ["projects/demo-project/secrets/raw-key"]
    launchers             = ["group:data@example.org"]
    tables_file           = "examples/complete/tables.json"
    tables                = { carriers = { schema = "[{\"name\": \"carrier\", \"type\": \"STRING\"}]" } }
  }

  assert {
    condition     = output.jobs == { stream = "flights-eu-stream", batch = "flights-eu-batch" }
    error_message = "Both jobs."
  }

  assert {
    condition     = toset(keys(output.tables)) == toset(["rows", "rows_speed", "delays_by_hour", "delays_by_hour_speed", "carriers"])
    error_message = "Tables of the file and of the variable: ${jsonencode(keys(output.tables))}."
  }

  assert {
    condition     = output.places["dataset"] == "demo-project.flights_eu"
    error_message = "A dataset's name has no hyphens."
  }

  assert {
    condition     = length(output.alerts) == 9
    error_message = "With a batch, its alert: ${jsonencode(output.alerts)}."
  }
}

run "the_first_apply_makes_no_jobs" {
  command = plan
  variables {
    deploy = false
    batch  = { schedule = "15 2 * * *" }
  }

  assert {
    condition     = output.jobs == {} && output.alerts == null && output.stream_job_id == null && output.buckets["config"] == "demo-project-flights-config"
    error_message = "The bucket for the template is made; jobs and alerts are not."
  }
}
