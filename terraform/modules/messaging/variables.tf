variable "project" {
  description = "The project's id."
  type        = string
}

variable "project_number" {
  description = "The project's number, of which the name of Pub/Sub's own account is made."
  type        = string
}

variable "region" {
  description = "The only region in which messages are kept."
  type        = string
}

variable "name" {
  description = "The topic and the job's subscription; the others begin with it."
  type        = string
}

variable "labels" {
  description = "Labels of every topic and subscription."
  type        = map(string)
}

variable "kms_key" {
  description = "The key of messages; null: Google's."
  type        = string
  default     = null
}

variable "ack_deadline_s" {
  description = "How long a message is leased to the job; Dataflow extends it."
  type        = number
}

variable "retention_days" {
  description = "How long messages that nobody has acknowledged are kept."
  type        = number
}

variable "dead_letter_retention_days" {
  description = "How long people have to look at dead letters in the topic."
  type        = number
}

variable "max_delivery_attempts" {
  description = "After how many deliveries Pub/Sub moves a message to the dead-letter topic; null: never."
  type        = number
  default     = null
}

variable "archive" {
  description = "Where and how often raw messages are written."
  type = object({
    bucket         = string
    prefix         = string
    max_duration_s = number
    max_bytes      = number
  })
}
