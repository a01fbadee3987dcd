# Workers have no public addresses, so their subnetwork must reach Google's services by itself.
mock_provider "google" {
  override_during = plan
}

variables {
  project = "demo-project"
  region  = "europe-west3"
  name    = "flights"
}

run "a_network_is_made_for_the_workers" {
  command = plan
  module { source = "./modules/network" }

  assert {
    condition     = google_compute_subnetwork.workers[0].private_ip_google_access == true && google_compute_network.workers[0].auto_create_subnetworks == false
    error_message = "Without private access workers without addresses never start."
  }

  assert {
    condition     = google_compute_firewall.between_workers[0].source_tags == tolist(["dataflow"]) && google_compute_firewall.between_workers[0].target_tags == tolist(["dataflow"]) && google_compute_firewall.between_workers[0].source_ranges == null && google_compute_firewall.between_workers[0].allow[0].ports == tolist(["12345-12346"])
    error_message = "Workers talk to workers; nobody else comes in."
  }

  assert {
    condition     = output.subnetwork == "regions/europe-west3/subnetworks/flights-workers"
    error_message = "As Dataflow wants it: ${output.subnetwork}."
  }
}

run "one_that_is_there_is_used" {
  command = plan
  module { source = "./modules/network" }
  variables { subnetwork = "https://www.googleapis.com/compute/v1/projects/host/regions/europe-west3/subnetworks/shared" }

  assert {
    condition     = length(google_compute_network.workers) == 0 && length(google_compute_subnetwork.workers) == 0 && length(google_compute_firewall.between_workers) == 0 && output.subnetwork == var.subnetwork
    error_message = "Nothing is made beside it."
  }
}
