variable "project" {
  description = "The project's id."
  type        = string
}

variable "name" {
  description = "What the accounts' names begin with."
  type        = string
}

variable "buckets" {
  description = "The names of our buckets: lake, archive, staging."
  type        = map(string)
}

variable "config_buckets" {
  description = "The buckets in which template and spec lie."
  type        = list(string)
}

variable "subscription" {
  description = "The subscription that the job reads, by its short name."
  type        = string
}

variable "topic" {
  description = "Where producers publish: projects/P/topics/T."
  type        = string
}

variable "dead_letter_topic" {
  description = "projects/P/topics/T."
  type        = string
}

variable "publish_topics" {
  description = "More topics that the spec's `pubsub` sinks write to: projects/P/topics/T."
  type        = list(string)
  default     = []
}

variable "dataset" {
  description = "The dataset's id."
  type        = string
}

variable "image_repository" {
  description = "The Artifact Registry repository of the image."
  type        = object({ project = string, location = string, repository = string })
}

variable "secrets" {
  description = "Secrets that the spec refers to: projects/P/secrets/S."
  type        = list(string)
  default     = []
}

variable "worker_roles" {
  description = "More roles on the whole project for the worker."
  type        = list(string)
  default     = []
}

variable "producers" {
  description = "Who may publish, such as serviceAccount:NAME@P.iam.gserviceaccount.com."
  type        = list(string)
  default     = []
}

variable "launchers" {
  description = "Who may become the launcher, such as group:data@example.org."
  type        = list(string)
  default     = []
}
