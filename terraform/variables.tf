# ── which pipeline ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

variable "project" {
  description = "The project's id, in which everything is made."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{4,28}[a-z0-9]$", var.project))
    error_message = "project: this is no project id; got \"${var.project}\"; expected 6 to 30 small letters, digits and hyphens (not the project's number or title)."
  }
}

variable "region" {
  description = "Where jobs, messages and the scheduler are, such as europe-west3."
  type        = string

  validation {
    condition     = can(regex("^[a-z]+-[a-z]+[0-9]+$", var.region))
    error_message = "region: this is no region; got \"${var.region}\"; expected one like europe-west3 (a zone has a letter more: leave it out)."
  }
}

variable "name" {
  description = "The pipeline's name: what every name here begins with. As the spec's `pipeline`, with hyphens."
  type        = string

  validation {
    condition     = can(regex("^[a-z]([a-z0-9-]{0,18}[a-z0-9])$", var.name)) && !startswith(var.name, "goog")
    error_message = "name: accounts and buckets cannot be called so; got \"${var.name}\"; expected 2 to 20 small letters, digits and hyphens, beginning with a letter, not with `goog`."
  }
}

variable "image" {
  description = "The image of launcher and workers in Artifact Registry, with tag or digest."
  type        = string

  validation {
    condition     = can(regex("^[a-z0-9-]+-docker\\.pkg\\.dev/[^/]+/[^/]+/[^:@]+(:[\\w.-]+|@sha256:[0-9a-f]{64})$", var.image)) && !endswith(var.image, ":latest")
    error_message = "image: it must say which build it is; got \"${var.image}\"; expected REGION-docker.pkg.dev/PROJECT/REPOSITORY/IMAGE:TAG (not `latest`) or …@sha256:DIGEST."
  }
}

variable "template_path" {
  description = "The stream's flex template, written by `beam-pipelines template build --mode stream`. A new path updates the running job; a file replaced under the same path is not seen."
  type        = string

  validation {
    condition     = can(regex("^gs://[a-z0-9][a-z0-9._-]+/.+\\.json$", var.template_path))
    error_message = "template_path: this is no template; got \"${var.template_path}\"; expected gs://BUCKET/PATH.json."
  }
}

variable "spec_path" {
  description = "The stream's spec: the file that `template build` writes beside the template, or any at gs:// that needs no other file. A new path updates the running job."
  type        = string

  validation {
    condition     = can(regex("^gs://[a-z0-9][a-z0-9._-]+/.+\\.(ya?ml|json)$", var.spec_path))
    error_message = "spec_path: this is no spec that workers can read; got \"${var.spec_path}\"; expected gs://BUCKET/PATH.yaml or .json."
  }
}

# ── its parameters ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

variable "parameters" {
  description = "Parameters of the spec, for both jobs."
  type        = map(string)
  default     = {}

  validation {
    condition     = length(setintersection(keys(var.parameters), ["spec", "mode", "replace_running", "at_least_once"])) == 0
    error_message = "parameters: `spec`, `mode`, `replace_running` and `at_least_once` are set by this module; say spec_path, or fields of `stream`."
  }
}

variable "place_parameters" {
  description = "Which parameter of the spec is told which place made here: `lake`, `archive` and `temp` (gs://…), `subscription`, `dead_letter_topic` (projects/…), `dataset` (PROJECT.DATASET)."
  type        = map(string)
  default     = { lake = "lake", subscription = "subscription" }

  validation {
    condition     = length(setsubtract(keys(var.place_parameters), ["lake", "archive", "temp", "subscription", "dead_letter_topic", "dataset"])) == 0
    error_message = "place_parameters: unknown place; got ${join(", ", setsubtract(keys(var.place_parameters), ["lake", "archive", "temp", "subscription", "dead_letter_topic", "dataset"]))}; expected lake, archive, temp, subscription, dead_letter_topic or dataset."
  }
}

# ── its jobs ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

variable "deploy" {
  description = "Whether the jobs and their alerts are made. `false` for the first apply, which makes the bucket that the template is then built into."
  type        = bool
  default     = true
}

variable "stream" {
  description = "The streaming job. `replace_running`: true for an apply that changes the running job; where none runs it starts one. `at_least_once` is Dataflow's cheaper mode; `transform_names` maps old step names to new ones for an update."
  type = object({
    enabled         = optional(bool, true)
    parameters      = optional(map(string), {})
    machine_type    = optional(string, "n2-standard-2")
    num_workers     = optional(number, 1)
    max_workers     = optional(number, 5)
    at_least_once   = optional(bool, false)
    replace_running = optional(bool, false)
    transform_names = optional(map(string))
  })
  default = {}

  validation {
    condition     = var.stream.num_workers >= 1 && var.stream.max_workers >= var.stream.num_workers && var.stream.max_workers <= 1000
    error_message = "stream: workers do not fit; got num_workers ${var.stream.num_workers}, max_workers ${var.stream.max_workers}; expected 1 <= num_workers <= max_workers <= 1000."
  }
}

variable "batch" {
  description = "The batch job. `schedule` is a cron line by the clock of `time_zone`; null: no batch by the clock. `template_path` and `spec_path` null: the stream's."
  type = object({
    template_path = optional(string)
    spec_path     = optional(string)
    schedule      = optional(string)
    time_zone     = optional(string, "Etc/UTC")
    paused        = optional(bool, false)
    parameters    = optional(map(string), {})
    machine_type  = optional(string, "n2-standard-4")
    max_workers   = optional(number, 10)
  })
  default = {}

  validation {
    condition     = var.batch.schedule == null ? true : can(regex("^(\\S+\\s+){4}\\S+$", var.batch.schedule))
    error_message = "batch: schedule is no cron line; got \"${coalesce(var.batch.schedule, "null")}\"; expected five fields, such as \"15 2 * * *\" for a quarter past two every night."
  }

  validation {
    condition     = can(regex("^gs://[a-z0-9][a-z0-9._-]+/.+\\.json$", coalesce(var.batch.template_path, "gs://none/none.json"))) && can(regex("^gs://[a-z0-9][a-z0-9._-]+/.+\\.(ya?ml|json)$", coalesce(var.batch.spec_path, "gs://none/none.json")))
    error_message = "batch: a path is not in Cloud Storage; got template_path \"${coalesce(var.batch.template_path, "null")}\", spec_path \"${coalesce(var.batch.spec_path, "null")}\"; expected gs://BUCKET/PATH.json, or null for the stream's."
  }

  validation {
    condition     = var.batch.max_workers >= 1 && var.batch.max_workers <= 1000
    error_message = "batch: max_workers is out of range; got ${var.batch.max_workers}; expected 1 to 1000."
  }
}

variable "subnetwork" {
  description = "A subnetwork with Private Google Access for the workers, as regions/REGION/subnetworks/NAME or a full URL; null makes a network for them."
  type        = string
  default     = null

  validation {
    condition     = var.subnetwork == null ? true : can(regex("(^|/)regions/${var.region}/subnetworks/[^/]+$", var.subnetwork))
    error_message = "subnetwork: it is not in the jobs' region; got \"${coalesce(var.subnetwork, "null")}\"; expected …regions/${var.region}/subnetworks/NAME."
  }
}

# ── messages ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

variable "messages" {
  description = "How messages are kept. `max_delivery_attempts` lets Pub/Sub itself move messages to the dead-letter topic; leave it null for Dataflow, which hands messages back for reasons of its own."
  type = object({
    retention_days             = optional(number, 7)
    dead_letter_retention_days = optional(number, 7)
    ack_deadline_s             = optional(number, 60)
    max_delivery_attempts      = optional(number)
  })
  default = {}

  validation {
    condition     = alltrue([for days in [var.messages.retention_days, var.messages.dead_letter_retention_days] : days >= 1 && days <= 31])
    error_message = "messages: retention is out of range; got ${var.messages.retention_days} and ${var.messages.dead_letter_retention_days} days; expected 1 to 31."
  }

  validation {
    condition     = var.messages.ack_deadline_s >= 10 && var.messages.ack_deadline_s <= 600
    error_message = "messages: ack_deadline_s is out of range; got ${var.messages.ack_deadline_s}; expected 10 to 600."
  }

  validation {
    condition     = var.messages.max_delivery_attempts == null ? true : var.messages.max_delivery_attempts >= 5 && var.messages.max_delivery_attempts <= 100
    error_message = "messages: max_delivery_attempts is out of range; got ${coalesce(var.messages.max_delivery_attempts, 0)}; expected 5 to 100, or null."
  }
}

variable "archive" {
  description = "The raw messages in Cloud Storage: a file is closed after `max_duration_s` or `max_bytes`. `retention_days` null keeps them for ever: they are what everything else is computed from."
  type = object({
    prefix         = optional(string, "raw/")
    max_duration_s = optional(number, 300)
    max_bytes      = optional(number, 268435456)
    retention_days = optional(number)
  })
  default = {}

  validation {
    condition     = var.archive.max_duration_s >= 60 && var.archive.max_duration_s <= 600
    error_message = "archive: max_duration_s is out of range; got ${var.archive.max_duration_s}; expected 60 to 600."
  }

  validation {
    condition     = var.archive.max_bytes >= 1024 && var.archive.max_bytes <= 10737418240
    error_message = "archive: max_bytes is out of range; got ${var.archive.max_bytes}; expected 1024 (1 KiB) to 10737418240 (10 GiB)."
  }

  validation {
    condition     = can(regex("^[^/].*/$", var.archive.prefix))
    error_message = "archive: prefix is no folder; got \"${var.archive.prefix}\"; expected it to end with `/` and not to begin with it."
  }

  validation {
    condition     = var.archive.retention_days == null ? true : var.archive.retention_days >= 1
    error_message = "archive: retention_days is less than a day; got ${coalesce(var.archive.retention_days, 0)}; expected 1 or more, or null for ever."
  }
}

variable "producers" {
  description = "Who may publish to the topic, such as serviceAccount:web@other-project.iam.gserviceaccount.com."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for member in var.producers : can(regex("^(user|group|serviceAccount|principal|principalSet):.+", member))])
    error_message = "producers: the public is not let in; got ${join(", ", [for member in var.producers : "\"${member}\"" if !can(regex("^(user|group|serviceAccount|principal|principalSet):.+", member))])}; expected user:…, group:…, serviceAccount:… or principal:…."
  }
}

variable "publish_topics" {
  description = "More topics that the spec's `pubsub` sinks write to: projects/P/topics/T. The dead-letter topic is among them anyway."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for topic in var.publish_topics : can(regex("^projects/[^/]+/topics/[^/]+$", topic))])
    error_message = "publish_topics: expected projects/PROJECT/topics/TOPIC; got ${join(", ", [for topic in var.publish_topics : "\"${topic}\"" if !can(regex("^projects/[^/]+/topics/[^/]+$", topic))])}."
  }
}

# ── tables ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

variable "tables" {
  description = "BigQuery tables by name; `schema` is JSON text. The pipeline makes missing tables itself: name those here whose partitions, expiry or sorting you want settled before. `partition_by` is a `column` and a `unit` (hour, day, month, year); `speed` makes NAME_speed, too."
  type = map(object({
    schema                    = string
    description               = optional(string, "")
    partition_by              = optional(object({ column = string, unit = optional(string, "day") }))
    partition_expiration_days = optional(number)
    require_partition_filter  = optional(bool, false)
    cluster_by                = optional(list(string), [])
    primary_key               = optional(list(string), [])
    speed                     = optional(bool, false)
  }))
  default = {}
}

variable "tables_file" {
  description = "A JSON file of more tables, as `tables`, but with `schema` as a list of columns. A table named in both is as in `tables`."
  type        = string
  default     = null

  validation {
    condition     = var.tables_file == null ? true : can([for name, table in jsondecode(file(var.tables_file)) : table.schema[*].name])
    error_message = "tables_file: not a file with a JSON object; got \"${coalesce(var.tables_file, "null")}\"; expected {\"rows\": {\"schema\": [{\"name\": …, \"type\": …}], …}}."
  }
}

# ── places, keys, people ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

variable "location" {
  description = "Where buckets and dataset are: a region or multi-region (EU, US); null: `region`."
  type        = string
  default     = null
}

variable "kms_key" {
  description = "A Cloud KMS key for all data at rest: projects/P/locations/L/keyRings/R/cryptoKeys/K, in `region`. Null: Google's keys."
  type        = string
  default     = null

  validation {
    condition     = var.kms_key == null ? true : can(regex("^projects/[^/]+/locations/${var.region}/keyRings/[^/]+/cryptoKeys/[^/]+$", var.kms_key))
    error_message = "kms_key: not a key in the jobs' region; got \"${coalesce(var.kms_key, "null")}\"; expected projects/P/locations/${var.region}/keyRings/R/cryptoKeys/K, without a version."
  }

  validation {
    condition     = var.kms_key == null || var.location == null || var.location == var.region
    error_message = "kms_key: a key encrypts only what is in its own location; got location \"${coalesce(var.location, "null")}\"; expected null or ${var.region}."
  }
}

variable "secrets" {
  description = "Secrets that the spec refers to: projects/P/secrets/S."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for secret in var.secrets : can(regex("^projects/[^/]+/secrets/[^/]+$", secret))])
    error_message = "secrets: expected projects/PROJECT/secrets/SECRET, without a version; got ${join(", ", [for secret in var.secrets : "\"${secret}\"" if !can(regex("^projects/[^/]+/secrets/[^/]+$", secret))])}."
  }
}

variable "worker_roles" {
  description = "More roles on the whole project for the worker, where the spec needs something that is not made here. Better is a grant on the one resource to the account in the output `accounts`."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for role in var.worker_roles : can(regex("^(roles/|projects/[^/]+/roles/|organizations/[^/]+/roles/).+", role)) && !can(regex("(?i)(^roles/(owner|editor)$|admin)", role))])
    error_message = "worker_roles: a job is no administrator; got ${join(", ", var.worker_roles)}; expected roles/… that are neither owner nor editor nor an Admin."
  }
}

variable "launchers" {
  description = "Who may start, update and drain jobs (by becoming the launcher), such as group:data@example.org."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for member in var.launchers : can(regex("^(user|group|serviceAccount|principal|principalSet):.+", member))])
    error_message = "launchers: the public is not let in; got ${join(", ", [for member in var.launchers : "\"${member}\"" if !can(regex("^(user|group|serviceAccount|principal|principalSet):.+", member))])}; expected user:…, group:…, serviceAccount:… or principal:…."
  }
}

variable "labels" {
  description = "Labels of everything that can have some; `pipeline` and `made_by` are added."
  type        = map(string)
  default     = {}

  validation {
    condition     = alltrue([for key, value in var.labels : can(regex("^[a-z][a-z0-9_-]{0,62}$", key)) && can(regex("^[a-z0-9_-]{0,63}$", value))])
    error_message = "labels: Google takes small letters, digits, `_` and `-` only, 63 at most; got ${join(", ", [for key, value in var.labels : "${key} = \"${value}\"" if !(can(regex("^[a-z][a-z0-9_-]{0,62}$", key)) && can(regex("^[a-z0-9_-]{0,63}$", value)))])}."
  }
}

variable "deletion_protection" {
  description = "Whether `terraform destroy` refuses to delete buckets and tables that hold something."
  type        = bool
  default     = true
}

variable "undo_days" {
  description = "For how many days what was overwritten or deleted in lake, archive and config can be had back."
  type        = number
  default     = 14

  validation {
    condition     = var.undo_days >= 1
    error_message = "undo_days: got ${var.undo_days}; expected 1 or more."
  }
}

variable "temporary_days" {
  description = "After how many days what jobs leave in `temp/` is deleted."
  type        = number
  default     = 14

  validation {
    condition     = var.temporary_days >= 8
    error_message = "temporary_days: a batch may run for days and needs its files; got ${var.temporary_days}; expected 8 or more."
  }
}

variable "enable_apis" {
  description = "Whether the services that are used are enabled in the project (and stay so after `destroy`)."
  type        = bool
  default     = true
}

# ── alerts ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

variable "notification_channels" {
  description = "Who is told of alerts: projects/P/notificationChannels/N. With none, alerts only show in the console."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for channel in var.notification_channels : can(regex("^projects/[^/]+/notificationChannels/[^/]+$", channel))])
    error_message = "notification_channels: expected projects/PROJECT/notificationChannels/NUMBER; got ${join(", ", [for channel in var.notification_channels : "\"${channel}\"" if !can(regex("^projects/[^/]+/notificationChannels/[^/]+$", channel))])}."
  }
}

variable "thresholds" {
  description = "Above what somebody is told: age of the oldest message, messages waiting, age of the oldest message not archived, dead letters, watermark behind the clock, longest time in work, silence of the job."
  type = object({
    freshness_s             = optional(number, 300)
    backlog_messages        = optional(number, 100000)
    archive_s               = optional(number, 1800)
    dead_letters_per_minute = optional(number, 60)
    data_freshness_s        = optional(number, 900)
    system_lag_s            = optional(number, 600)
    absent_s                = optional(number, 900)
  })
  default = {}

  validation {
    condition     = alltrue([for name, value in var.thresholds : value > 0])
    error_message = "thresholds: must be more than 0; got ${join(", ", [for name, value in var.thresholds : "${name} = ${value}" if value <= 0])}."
  }

  validation {
    condition     = var.thresholds.archive_s >= 2 * var.archive.max_duration_s
    error_message = "thresholds: a file of the archive stays open for ${var.archive.max_duration_s} s, so this would always be told; got archive_s = ${var.thresholds.archive_s}; expected ${2 * var.archive.max_duration_s} or more."
  }

  validation {
    condition     = var.thresholds.absent_s >= 180 && var.thresholds.absent_s <= 84600
    error_message = "thresholds: Cloud Monitoring takes 180 to 84600 for an absence; got absent_s = ${var.thresholds.absent_s}."
  }
}
