variable "project" {
  description = "The project's id."
  type        = string
}

variable "name" {
  description = "The pipeline's name."
  type        = string
}

variable "dataset" {
  description = "The dataset's id."
  type        = string
}

variable "location" {
  description = "A region or multi-region."
  type        = string
}

variable "labels" {
  description = "Labels of the dataset and every table."
  type        = map(string)
}

variable "kms_key" {
  description = "The key of tables; null: Google's."
  type        = string
  default     = null
}

variable "deletion_protection" {
  description = "Whether `terraform destroy` refuses to delete tables."
  type        = bool
}

variable "tables" {
  description = "Tables by name."
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

  validation {
    condition     = alltrue([for name, _ in var.tables : can(regex("^\\w{1,1000}$", name))])
    error_message = "tables: a name is of letters, digits and underscores; got ${join(", ", [for name, _ in var.tables : "\"${name}\"" if !can(regex("^\\w{1,1000}$", name))])}."
  }

  validation {
    condition     = alltrue([for table in var.tables : can([for column in jsondecode(table.schema) : "${column.name}${column.type}"])])
    error_message = "tables: schema is no JSON list of columns with name and type, as `bq show --schema` prints it; of ${join(", ", [for name, table in var.tables : "\"${name}\"" if !can([for column in jsondecode(table.schema) : "${column.name}${column.type}"])])}."
  }

  validation {
    condition     = alltrue([for table in var.tables : table.partition_by == null ? true : contains(["hour", "day", "month", "year"], lower(table.partition_by.unit))])
    error_message = "tables: partition_by.unit is hour, day, month or year; got ${join(", ", [for name, table in var.tables : "\"${table.partition_by.unit}\" of ${name}" if table.partition_by == null ? false : !contains(["hour", "day", "month", "year"], lower(table.partition_by.unit))])}."
  }

  validation {
    condition = alltrue([
      for table in var.tables : table.partition_by == null ? true : length([
        for column in try(jsondecode(table.schema), []) : column if column.name == table.partition_by.column
        && contains(lower(table.partition_by.unit) == "hour" ? ["TIMESTAMP", "DATETIME"] : ["TIMESTAMP", "DATETIME", "DATE"], upper(column.type))
      ]) == 1
    ])
    error_message = "tables: partition_by.column is no TIMESTAMP, DATETIME or (but for hours) DATE column of the schema; of ${join(", ", [for name, table in var.tables : "\"${name}\"" if table.partition_by != null])}: look at each."
  }

  validation {
    condition = alltrue(flatten([
      for table in var.tables : [for column in concat(table.cluster_by, table.primary_key) : contains(try(jsondecode(table.schema)[*].name, []), column)]
    ]))
    error_message = "tables: cluster_by or primary_key names a column that the schema does not have: ${join(", ", flatten([for name, table in var.tables : [for column in concat(table.cluster_by, table.primary_key) : "${name}.${column}" if !contains(try(jsondecode(table.schema)[*].name, []), column)]]))}."
  }

  validation {
    condition     = alltrue([for table in var.tables : length(table.cluster_by) <= 4])
    error_message = "tables: BigQuery sorts by four columns at most; got more in cluster_by of ${join(", ", [for name, table in var.tables : name if length(table.cluster_by) > 4])}."
  }

  validation {
    condition     = alltrue([for table in var.tables : table.partition_by != null || (table.partition_expiration_days == null && !table.require_partition_filter)])
    error_message = "tables: partition_expiration_days and require_partition_filter need partition_by; of ${join(", ", [for name, table in var.tables : name if table.partition_by == null])}."
  }

  validation {
    condition     = alltrue([for table in var.tables : table.partition_expiration_days == null ? true : table.partition_expiration_days > 0])
    error_message = "tables: partition_expiration_days is more than 0; null keeps partitions for ever."
  }

  validation {
    condition     = length([for name, table in var.tables : name if table.speed && contains(keys(var.tables), "${name}_speed")]) == 0
    error_message = "tables: with `speed` the table NAME_speed is made by itself; it is named a second time."
  }
}
