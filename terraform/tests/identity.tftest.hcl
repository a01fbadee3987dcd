# Who may do what: the whole list, so that a right more is as wrong as one less.
mock_provider "google" {
  override_during = plan
}

override_resource {
  target          = google_service_account.worker
  override_during = plan
  values          = { email = "worker@", name = "worker" }
}

override_resource {
  target          = google_service_account.launcher
  override_during = plan
  values          = { email = "launcher@", name = "launcher" }
}

override_resource {
  target          = google_service_account.scheduler
  override_during = plan
  values          = { email = "scheduler@", name = "scheduler" }
}

variables {
  project           = "demo-project"
  name              = "flights"
  buckets           = { lake = "the-lake", archive = "the-archive", config = "the-config", staging = "the-staging" }
  config_buckets    = ["the-config"]
  subscription      = "flights"
  topic             = "projects/demo-project/topics/flights"
  dead_letter_topic = "projects/demo-project/topics/flights-dead-letters"
  dataset           = "flights"
  image_repository  = { project = "images-project", location = "europe-west3", repository = "images" }
}

run "each_account_has_exactly_these_rights" {
  command = plan
  module { source = "./modules/identity" }

  assert {
    condition = toset([for grant in google_project_iam_member.grant : "${grant.member} ${grant.role}"]) == toset([
      "serviceAccount:worker@ roles/dataflow.worker",
      "serviceAccount:worker@ roles/dataflow.viewer",
      "serviceAccount:worker@ roles/bigquery.jobUser",
      "serviceAccount:worker@ roles/bigquery.readSessionUser",
      "serviceAccount:launcher@ roles/dataflow.developer",
      "serviceAccount:launcher@ roles/compute.viewer",
      "serviceAccount:scheduler@ roles/dataflow.developer",
      "serviceAccount:scheduler@ roles/compute.viewer",
    ])
    error_message = "Rights on the project: ${jsonencode([for grant in google_project_iam_member.grant : "${grant.member} ${grant.role}"])}."
  }

  assert {
    condition = toset([for grant in google_storage_bucket_iam_member.grant : "${grant.member} ${grant.bucket} ${grant.role}"]) == toset([
      "serviceAccount:worker@ the-lake roles/storage.objectUser",
      "serviceAccount:worker@ the-lake roles/storage.legacyBucketReader",
      "serviceAccount:worker@ the-staging roles/storage.objectUser",
      "serviceAccount:worker@ the-staging roles/storage.legacyBucketReader",
      "serviceAccount:worker@ the-archive roles/storage.objectViewer",
      "serviceAccount:worker@ the-archive roles/storage.legacyBucketReader",
      "serviceAccount:worker@ the-config roles/storage.objectViewer",
      "serviceAccount:launcher@ the-config roles/storage.objectViewer",
      "serviceAccount:scheduler@ the-config roles/storage.objectViewer",
    ])
    error_message = "Rights on buckets: ${jsonencode([for grant in google_storage_bucket_iam_member.grant : "${grant.member} ${grant.bucket} ${grant.role}"])}."
  }

  assert {
    condition = toset(concat(
      [for grant in google_pubsub_subscription_iam_member.worker : "${grant.member} ${grant.subscription} ${grant.role}"],
      [for grant in google_pubsub_topic_iam_member.worker : "${grant.member} ${grant.topic} ${grant.role}"],
      [for grant in google_pubsub_topic_iam_member.producer : "${grant.member} ${grant.topic} ${grant.role}"],
      )) == toset([
      "serviceAccount:worker@ flights roles/pubsub.subscriber",
      "serviceAccount:worker@ flights roles/pubsub.viewer",
      "serviceAccount:worker@ flights-dead-letters roles/pubsub.publisher",
    ])
    error_message = "The worker reads one subscription and publishes to the dead-letter topic, nothing more."
  }

  assert {
    condition = toset([for grant in google_service_account_iam_member.acts_as_worker : "${grant.member} ${grant.service_account_id} ${grant.role}"]) == toset([
      "serviceAccount:launcher@ worker roles/iam.serviceAccountUser",
      "serviceAccount:scheduler@ worker roles/iam.serviceAccountUser",
    ]) && length(google_service_account_iam_member.becomes_launcher) == 0
    error_message = "Only launcher and scheduler hand a job the worker's account, and nobody becomes the launcher unasked."
  }

  assert {
    condition     = google_bigquery_dataset_iam_member.worker.role == "roles/bigquery.dataEditor" && google_bigquery_dataset_iam_member.worker.dataset_id == "flights" && google_bigquery_dataset_iam_member.worker.member == "serviceAccount:worker@"
    error_message = "The worker writes tables of our dataset, and of no other."
  }

  assert {
    condition     = google_artifact_registry_repository_iam_member.worker.role == "roles/artifactregistry.reader" && google_artifact_registry_repository_iam_member.worker.project == "images-project" && google_artifact_registry_repository_iam_member.worker.repository == "images"
    error_message = "The worker reads the image's repository, where that is."
  }

  assert {
    condition     = length(google_secret_manager_secret_iam_member.worker) == 0
    error_message = "No secret was named, so none is readable."
  }
}

run "what_is_named_is_granted_there_and_only_there" {
  command = plan
  module { source = "./modules/identity" }

  variables {
    config_buckets = ["specs-of-others", "templates-of-others"]
    publish_topics = ["projects/other-project/topics/delays"]
    secrets        = ["projects/other-project/secrets/raw-key"]
    producers      = ["serviceAccount:web@other-project.iam.gserviceaccount.com"]
    launchers      = ["group:data@example.org"]
    worker_roles   = ["roles/pubsub.editor"]
  }

  assert {
    condition     = [for grant in google_project_iam_member.grant : grant.member if grant.role == "roles/pubsub.editor"] == ["serviceAccount:worker@"] && length(google_project_iam_member.grant) == 9
    error_message = "The role that was named, for the worker alone."
  }

  assert {
    condition     = toset([for grant in google_storage_bucket_iam_member.grant : "${grant.member} ${grant.role}" if grant.bucket == "templates-of-others"]) == toset([for account in ["worker", "launcher", "scheduler"] : "serviceAccount:${account}@ roles/storage.objectViewer"])
    error_message = "Whoever starts a job, and the job, read the template; nobody writes it."
  }

  assert {
    condition     = [for grant in google_pubsub_topic_iam_member.worker : "${grant.project} ${grant.topic} ${grant.role}" if grant.project != "demo-project"] == ["other-project delays roles/pubsub.publisher"]
    error_message = "The worker publishes to the topic that was named, in its project."
  }

  assert {
    condition     = [for grant in google_secret_manager_secret_iam_member.worker : "${grant.project} ${grant.secret_id} ${grant.role} ${grant.member}"] == ["other-project raw-key roles/secretmanager.secretAccessor serviceAccount:worker@"]
    error_message = "The worker reads the secret that was named."
  }

  assert {
    condition     = [for grant in google_pubsub_topic_iam_member.producer : "${grant.member} ${grant.topic} ${grant.role}"] == ["serviceAccount:web@other-project.iam.gserviceaccount.com flights roles/pubsub.publisher"]
    error_message = "A producer publishes to our topic."
  }

  assert {
    condition     = [for grant in google_service_account_iam_member.becomes_launcher : "${grant.member} ${grant.service_account_id} ${grant.role}"] == ["group:data@example.org launcher roles/iam.serviceAccountTokenCreator"]
    error_message = "The group may become the launcher, not the worker."
  }
}
