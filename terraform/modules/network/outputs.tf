output "subnetwork" {
  description = "The workers' subnetwork, as Dataflow wants it."
  value       = local.make ? "regions/${var.region}/subnetworks/${google_compute_subnetwork.workers[0].name}" : var.subnetwork
}
