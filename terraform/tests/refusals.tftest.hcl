# What is wrong is refused by the plan, before Google is asked. The sentences themselves: tests/cloud/test_terraform.py.
mock_provider "google" {
  override_during = plan

  mock_data "google_project" {
    defaults = { number = "123456789012" }
  }
}

mock_provider "google-beta" {
  override_during = plan
}

variables {
  project       = "demo-project"
  region        = "europe-west3"
  name          = "flights"
  image         = "europe-west3-docker.pkg.dev/demo-project/images/beam-pipelines:1.0.0"
  template_path = "gs://demo-project-flights-config/templates/flights-1.0.0.json"
  spec_path     = "gs://demo-project-flights-config/specs/flights-1.0.0.yaml"
  location      = null
}

run "names_and_paths" {
  command = plan
  variables {
    project       = "123456789012"
    region        = "europe-west3-a"
    name          = "Flights_2013"
    template_path = "templates/flights.json"
    spec_path     = "gs://bucket/flights.txt"
  }
  expect_failures = [var.project, var.region, var.name, var.template_path, var.spec_path]
}

run "an_image_that_can_change_under_its_name" {
  command = plan
  variables { image = "europe-west3-docker.pkg.dev/demo-project/images/beam-pipelines:latest" }
  expect_failures = [var.image]
}

run "the_public" {
  command = plan
  variables {
    producers = ["allUsers"]
    launchers = ["allAuthenticatedUsers"]
  }
  expect_failures = [var.producers, var.launchers]
}

run "a_batch_from_a_disk" {
  command = plan
  variables {
    batch = { template_path = "flights.json" }
  }
  expect_failures = [var.batch]
}

run "a_worker_that_administers" {
  command = plan
  variables {
    worker_roles = ["roles/pubsub.admin"]
  }
  expect_failures = [var.worker_roles]
}

run "a_key_of_elsewhere" {
  command = plan
  variables { kms_key = "projects/p/locations/us-east1/keyRings/r/cryptoKeys/k" }
  expect_failures = [var.kms_key]
}

run "a_key_of_one_region_for_data_of_another" {
  command = plan
  variables {
    kms_key  = "projects/p/locations/europe-west3/keyRings/r/cryptoKeys/k"
    location = "EU"
  }
  expect_failures = [var.kms_key]
}

run "numbers_out_of_range" {
  command = plan
  variables {
    stream         = { num_workers = 9, max_workers = 3 }
    batch          = { schedule = "every night", max_workers = 0 }
    messages       = { retention_days = 40, ack_deadline_s = 5, max_delivery_attempts = 2 }
    archive        = { max_duration_s = 30, max_bytes = 10, prefix = "/raw", retention_days = 0 }
    undo_days      = 0
    temporary_days = 1
  }
  expect_failures = [var.stream, var.batch, var.messages, var.archive, var.undo_days, var.temporary_days]
}

run "thresholds_that_make_no_sense" {
  command = plan
  variables { thresholds = { freshness_s = 0, archive_s = 300, absent_s = 60 } }
  expect_failures = [var.thresholds]
}

run "things_that_are_no_names_of_resources" {
  command = plan
  variables {
    secrets               = ["raw-key"]
    publish_topics        = ["delays"]
    notification_channels = ["me@example.org"]
    subnetwork            = "regions/us-east1/subnetworks/default"
    labels                = { Team = "Data" }
    parameters            = { spec = "gs://other" }
    place_parameters      = { lke = "lake" }
    tables_file           = "examples/none.json"
  }
  expect_failures = [var.secrets, var.publish_topics, var.notification_channels, var.subnetwork, var.labels, var.parameters, var.place_parameters, var.tables_file]
}
