variable "project" {
  description = "The project's id."
  type        = string
}

variable "region" {
  description = "Where the workers run."
  type        = string
}

variable "name" {
  description = "What names begin with."
  type        = string
}

variable "subnetwork" {
  description = "A subnetwork with Private Google Access that is there already, as `regions/REGION/subnetworks/NAME` or a full URL; null makes one."
  type        = string
  default     = null
}
