variable "project_number" {
  description = "The project's number, of which the names of Google's own accounts are made."
  type        = string
}

variable "kms_key" {
  description = "projects/P/locations/L/keyRings/R/cryptoKeys/K; null: Google's keys, and nothing is granted."
  type        = string
  default     = null
}
