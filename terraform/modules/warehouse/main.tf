locals {
  # A stream appends to a table of its own beside the batch's; the views show both as one.
  speed  = { for name, table in var.tables : "${name}_speed" => table if table.speed }
  tables = merge(var.tables, local.speed)
  day_ms = 86400000
}

resource "google_bigquery_dataset" "dataset" {
  project                    = var.project
  dataset_id                 = var.dataset
  location                   = var.location
  description                = "Outputs of the pipeline ${var.name}."
  labels                     = var.labels
  delete_contents_on_destroy = !var.deletion_protection
  max_time_travel_hours      = "168"

  dynamic "default_encryption_configuration" {
    for_each = var.kms_key[*]
    content {
      kms_key_name = default_encryption_configuration.value
    }
  }
}

resource "google_bigquery_table" "table" {
  for_each                 = local.tables
  project                  = var.project
  dataset_id               = google_bigquery_dataset.dataset.dataset_id
  table_id                 = each.key
  description              = each.value.description
  labels                   = merge(var.labels, { layer = contains(keys(local.speed), each.key) ? "speed" : "batch" })
  schema                   = each.value.schema
  clustering               = length(each.value.cluster_by) == 0 ? null : each.value.cluster_by
  require_partition_filter = each.value.partition_by == null ? null : each.value.require_partition_filter
  deletion_protection      = var.deletion_protection

  dynamic "time_partitioning" {
    for_each = each.value.partition_by[*]
    content {
      field         = time_partitioning.value.column
      type          = upper(time_partitioning.value.unit)
      expiration_ms = each.value.partition_expiration_days == null ? null : each.value.partition_expiration_days * local.day_ms
    }
  }

  dynamic "table_constraints" {
    for_each = length(each.value.primary_key) == 0 ? [] : [each.value.primary_key]
    content {
      primary_key {
        columns = table_constraints.value
      }
    }
  }

  dynamic "encryption_configuration" {
    for_each = var.kms_key[*]
    content {
      kms_key_name = encryption_configuration.value
    }
  }

  lifecycle {
    ignore_changes = [schema] # the pipeline adds the columns of a newer contract itself; a plan must not want to take them back
  }
}
