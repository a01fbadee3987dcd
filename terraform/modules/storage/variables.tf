variable "project" {
  description = "The project's id; names of buckets begin with it, because they are the world's."
  type        = string
}

variable "name" {
  description = "The pipeline's name."
  type        = string
}

variable "location" {
  description = "A region, dual region or multi-region."
  type        = string
}

variable "labels" {
  description = "Labels of every bucket."
  type        = map(string)
}

variable "kms_key" {
  description = "The key of new objects; null: Google's."
  type        = string
  default     = null
}

variable "deletion_protection" {
  description = "Whether a bucket that holds something outlives `terraform destroy`."
  type        = bool
}

variable "undo_days" {
  description = "For how many days what was overwritten or deleted can be had back."
  type        = number
}

variable "temporary_days" {
  description = "After how many days what jobs leave in `temp/` is deleted."
  type        = number
}

variable "archive_retention_days" {
  description = "After how many days raw messages are deleted; null: never."
  type        = number
  default     = null
}
