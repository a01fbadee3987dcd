# As in a project where nothing is yet: what the service makes up (ids, e-mail addresses) is unknown in the plan, and must not decide what is made.
mock_provider "google" {
  mock_data "google_project" {
    defaults = { number = "123456789012" }
  }
}

mock_provider "google-beta" {}

variables {
  project        = "demo-project"
  region         = "europe-west3"
  name           = "flights"
  image          = "europe-west3-docker.pkg.dev/demo-project/images/beam-pipelines:1.0.0"
  template_path  = "gs://demo-project-flights-config/templates/flights-1.0.0.json"
  spec_path      = "gs://demo-project-flights-config/specs/flights-1.0.0.yaml"
  kms_key        = "projects/keys-project/locations/europe-west3/keyRings/r/cryptoKeys/k"
  batch          = { schedule = "15 2 * * *" }
  messages       = { max_delivery_attempts = 10 }
  publish_topics = ["projects/other-project/topics/delays"]
  secrets        = ["projects/demo-project/secrets/raw-key"]
  launchers      = ["group:data@example.org"]
  producers      = ["group:data@example.org"]
  tables_file    = "examples/complete/tables.json"
}

run "a_first_plan_knows_what_it_makes" {
  command = plan

  assert {
    condition     = output.places["subscription"] == "projects/demo-project/subscriptions/flights" && output.topic == "projects/demo-project/topics/flights"
    error_message = "Names are known before anything is there."
  }
}

run "apply_goes_from_keys_to_jobs" {
  command = apply

  assert {
    condition     = output.stream_job_id != null
    error_message = "The job is there."
  }
}
