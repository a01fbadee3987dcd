output "dataset" {
  description = "The dataset's id."
  value       = google_bigquery_dataset.dataset.dataset_id
}

output "tables" {
  description = "PROJECT.DATASET.TABLE of each table, those of the speed layer included, as a `bigquery` sink names it."
  value       = { for name, _ in local.tables : name => "${var.project}.${google_bigquery_dataset.dataset.dataset_id}.${name}" }
}
