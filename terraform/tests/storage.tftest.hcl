# Buckets: nothing public, nothing lost by one wrong run, nothing kept that nobody needs.
mock_provider "google" {
  override_during = plan
}

variables {
  project             = "demo-project"
  name                = "flights"
  location            = "europe-west3"
  labels              = { pipeline = "flights" }
  deletion_protection = true
  undo_days           = 14
  temporary_days      = 21
}

run "no_bucket_is_public" {
  command = plan
  module { source = "./modules/storage" }

  assert {
    condition     = alltrue([for bucket in google_storage_bucket.bucket : bucket.public_access_prevention == "enforced" && bucket.uniform_bucket_level_access])
    error_message = "Public access is prevented and there are no ACLs, in every bucket."
  }

  assert {
    condition     = output.buckets == { for holds in ["archive", "config", "lake", "staging"] : holds => "demo-project-flights-${holds}" }
    error_message = "Four buckets: ${jsonencode(output.buckets)}."
  }

  assert {
    condition     = alltrue([for bucket in google_storage_bucket.bucket : bucket.labels["pipeline"] == "flights"])
    error_message = "Every bucket has its label."
  }
}

run "versions_are_kept_where_an_undo_makes_sense" {
  command = plan
  module { source = "./modules/storage" }

  assert {
    condition     = { for holds, bucket in google_storage_bucket.bucket : holds => bucket.versioning[0].enabled } == { lake = true, archive = true, config = true, staging = false }
    error_message = "All but staging have versions."
  }

  assert {
    condition     = alltrue([for holds, bucket in google_storage_bucket.bucket : contains(bucket.lifecycle_rule[*].condition[0].days_since_noncurrent_time, 14) if holds != "staging"])
    error_message = "Old versions go after undo_days."
  }

  assert {
    condition     = alltrue([for bucket in google_storage_bucket.bucket : !bucket.force_destroy])
    error_message = "With deletion_protection a bucket that holds something is not destroyed."
  }
}

run "only_temporary_files_expire" {
  command = plan
  module { source = "./modules/storage" }

  assert {
    condition     = [for rule in google_storage_bucket.bucket["staging"].lifecycle_rule : rule.condition[0].age if rule.action[0].type == "Delete"] == [21]
    error_message = "Files of jobs go after temporary_days."
  }

  assert {
    condition     = [for rule in google_storage_bucket.bucket["staging"].lifecycle_rule : rule.condition[0].matches_prefix if rule.action[0].type == "Delete"] == [tolist(["temp/"])]
    error_message = "What is staged for a stream stays: a worker that is started after months fetches it."
  }

  assert {
    condition     = alltrue([for holds in ["lake", "archive", "config"] : length([for rule in google_storage_bucket.bucket[holds].lifecycle_rule : rule if rule.action[0].type == "Delete" && rule.condition[0].days_since_noncurrent_time == null]) == 0])
    error_message = "Live data never expires unless it is said."
  }
}

run "the_archive_expires_if_it_is_said" {
  command = plan
  module { source = "./modules/storage" }

  variables { archive_retention_days = 400 }

  assert {
    condition     = [for rule in google_storage_bucket.bucket["archive"].lifecycle_rule : rule.condition[0].age if rule.condition[0].with_state == "LIVE"] == [400]
    error_message = "Raw messages go after archive.retention_days."
  }
}

run "without_protection_buckets_can_be_destroyed" {
  command = plan
  module { source = "./modules/storage" }

  variables { deletion_protection = false }

  assert {
    condition     = alltrue([for bucket in google_storage_bucket.bucket : bucket.force_destroy])
    error_message = "Otherwise `destroy` of a trial stops half-way."
  }
}
