# Workers without public addresses reach Google's services only from a subnetwork with private access, which default networks do not have.
locals {
  make = var.subnetwork == null
}

resource "google_compute_network" "workers" {
  count                   = local.make ? 1 : 0
  project                 = var.project
  name                    = "${var.name}-workers"
  description             = "Dataflow workers of ${var.name}; nothing comes in from outside."
  auto_create_subnetworks = false
}

resource "google_compute_subnetwork" "workers" {
  count                    = local.make ? 1 : 0
  project                  = var.project
  name                     = "${var.name}-workers"
  region                   = var.region
  network                  = google_compute_network.workers[0].id
  ip_cidr_range            = "10.128.0.0/20"
  private_ip_google_access = true
}

# Workers of one job shuffle between themselves; Dataflow tags them all `dataflow`.
resource "google_compute_firewall" "between_workers" {
  count       = local.make ? 1 : 0
  project     = var.project
  name        = "${var.name}-between-workers"
  network     = google_compute_network.workers[0].id
  direction   = "INGRESS"
  source_tags = ["dataflow"]
  target_tags = ["dataflow"]
  allow {
    protocol = "tcp"
    ports    = ["12345-12346"]
  }
}
