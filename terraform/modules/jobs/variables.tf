variable "project" {
  description = "The project's id."
  type        = string
}

variable "region" {
  description = "Where jobs and the scheduler run."
  type        = string
}

variable "name" {
  description = "What the jobs' names begin with."
  type        = string
}

variable "labels" {
  description = "Labels of the jobs and their machines."
  type        = map(string)
}

variable "template_path" {
  description = "The stream's flex template: gs://BUCKET/PATH.json."
  type        = string
}

variable "image" {
  description = "The image that the template was built for; the workers run it, too."
  type        = string
}

variable "spec_path" {
  description = "The stream's spec."
  type        = string
}

variable "parameters" {
  description = "Parameters of the spec for both jobs."
  type        = map(string)
  default     = {}
}

variable "staging_bucket" {
  description = "The bucket's name; jobs use `temp/` and `staging/` in it."
  type        = string
}

variable "worker_email" {
  description = "What the workers are."
  type        = string
}

variable "scheduler_email" {
  description = "What the scheduler is when it calls Dataflow."
  type        = string
}

variable "subnetwork" {
  description = "Where the workers are; they have no public addresses."
  type        = string
}

variable "kms_key" {
  description = "The key of the jobs' state and disks; null: Google's."
  type        = string
  default     = null
}

variable "stream" {
  description = "The streaming job."
  type = object({
    enabled         = bool
    parameters      = map(string)
    machine_type    = string
    num_workers     = number
    max_workers     = number
    at_least_once   = bool
    replace_running = bool
    transform_names = map(string)
  })
}

variable "batch" {
  description = "The scheduled batch job."
  type = object({
    template_path = string
    spec_path     = string
    schedule      = string
    time_zone     = string
    paused        = bool
    parameters    = map(string)
    machine_type  = string
    max_workers   = number
  })
}
