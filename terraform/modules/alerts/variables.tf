variable "project" {
  description = "The project's id."
  type        = string
}

variable "name" {
  description = "The pipeline's name; the jobs are NAME-stream and NAME-batch."
  type        = string
}

variable "labels" {
  description = "Labels of every alert."
  type        = map(string)
}

variable "notification_channels" {
  description = "Who is told: projects/P/notificationChannels/N."
  type        = list(string)
}

variable "subscriptions" {
  description = "Short names: job, archive, dead_letters."
  type        = map(string)
}

variable "dead_letter_topic" {
  description = "Its short name."
  type        = string
}

variable "has_stream" {
  description = "Whether there is a streaming job to watch."
  type        = bool
}

variable "has_batch" {
  description = "Whether there is a scheduled batch to watch."
  type        = bool
}

variable "thresholds" {
  description = "Above what somebody is told."
  type = object({
    freshness_s             = number
    backlog_messages        = number
    archive_s               = number
    dead_letters_per_minute = number
    data_freshness_s        = number
    system_lag_s            = number
    absent_s                = number
  })
}
