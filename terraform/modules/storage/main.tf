locals {
  buckets = {
    # Replaced by every run that computes a partition anew: the versions of the last days undo one that was wrong.
    lake = { versioned = true, soft_delete_days = 0, temporary_prefix = null, expire_days = null }
    # Never overwritten. Versions and soft deletion are for people who delete.
    archive = { versioned = true, soft_delete_days = 7, temporary_prefix = null, expire_days = var.archive_retention_days }
    # Templates and specs: old versions are what a roll-back needs.
    config = { versioned = true, soft_delete_days = 7, temporary_prefix = null, expire_days = null }
    # Only `temp/` expires: workers that a stream starts after months still fetch what was staged for it. Soft deletion would be paid for every shuffle.
    staging = { versioned = false, soft_delete_days = 0, temporary_prefix = "temp/", expire_days = null }
  }
}

resource "google_storage_bucket" "bucket" {
  for_each = local.buckets
  project  = var.project
  name     = "${var.project}-${var.name}-${each.key}"
  location = var.location
  labels   = merge(var.labels, { holds = each.key })

  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"
  force_destroy               = !var.deletion_protection

  versioning {
    enabled = each.value.versioned
  }

  soft_delete_policy {
    retention_duration_seconds = each.value.soft_delete_days * 86400
  }

  dynamic "encryption" {
    for_each = var.kms_key[*]
    content {
      default_kms_key_name = encryption.value
    }
  }

  lifecycle_rule {
    action {
      type = "AbortIncompleteMultipartUpload"
    }
    condition {
      age = 7
    }
  }

  dynamic "lifecycle_rule" {
    for_each = each.value.versioned ? [var.undo_days] : []
    content {
      action {
        type = "Delete"
      }
      condition {
        days_since_noncurrent_time = lifecycle_rule.value
        with_state                 = "ARCHIVED"
      }
    }
  }

  dynamic "lifecycle_rule" {
    for_each = each.value.temporary_prefix[*]
    content {
      action {
        type = "Delete"
      }
      condition {
        age            = var.temporary_days
        matches_prefix = [lifecycle_rule.value]
      }
    }
  }

  dynamic "lifecycle_rule" {
    for_each = each.value.expire_days[*]
    content {
      action {
        type = "Delete"
      }
      condition {
        age        = lifecycle_rule.value
        with_state = "LIVE"
      }
    }
  }
}
