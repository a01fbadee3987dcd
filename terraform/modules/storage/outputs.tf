output "buckets" {
  description = "The name of each bucket by what it holds: lake, archive, config, staging."
  value       = { for holds, bucket in google_storage_bucket.bucket : holds => bucket.name }
}
