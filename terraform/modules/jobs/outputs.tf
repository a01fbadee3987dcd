output "stream_job_id" {
  description = "Of the streaming job; null where there is none."
  value       = one(google_dataflow_flex_template_job.stream[*].job_id)
}

output "names" {
  description = "What the jobs are called, those that are there."
  value = merge(
    { for job in google_dataflow_flex_template_job.stream : "stream" => job.name },
    { for job in google_cloud_scheduler_job.batch : "batch" => job.name },
  )
}
