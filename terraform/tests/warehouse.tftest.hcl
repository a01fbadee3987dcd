# Dataset and tables: partitions, their expiry, sorting, and what is refused before BigQuery is asked.
mock_provider "google" {
  override_during = plan
}

variables {
  project             = "demo-project"
  name                = "flights"
  dataset             = "flights"
  location            = "EU"
  labels              = { pipeline = "flights" }
  deletion_protection = true
  tables = {
    rows = {
      schema                    = "[{\"name\": \"carrier\", \"type\": \"STRING\", \"mode\": \"REQUIRED\"}, {\"name\": \"scheduled_departure\", \"type\": \"TIMESTAMP\"}]"
      description               = "Checked flights."
      partition_by              = { column = "scheduled_departure" }
      partition_expiration_days = 90
      require_partition_filter  = true
      cluster_by                = ["carrier"]
      primary_key               = ["carrier"]
      speed                     = true
    }
    carriers = { schema = "[{\"name\": \"carrier\", \"type\": \"STRING\"}]" }
  }
}

run "tables_are_as_they_were_said" {
  command = plan
  module { source = "./modules/warehouse" }

  assert {
    condition     = toset(keys(google_bigquery_table.table)) == toset(["rows", "rows_speed", "carriers"])
    error_message = "The stream has a table of its own beside the batch's: ${jsonencode(keys(google_bigquery_table.table))}."
  }

  assert {
    condition     = alltrue([for name in ["rows", "rows_speed"] : google_bigquery_table.table[name].time_partitioning[0].field == "scheduled_departure" && google_bigquery_table.table[name].time_partitioning[0].type == "DAY" && google_bigquery_table.table[name].time_partitioning[0].expiration_ms == 90 * 86400000])
    error_message = "Partitioned by day of the event time, each for ninety days, in both layers."
  }

  assert {
    condition     = google_bigquery_table.table["rows"].clustering == tolist(["carrier"]) && google_bigquery_table.table["rows"].require_partition_filter == true && google_bigquery_table.table["rows"].table_constraints[0].primary_key[0].columns == tolist(["carrier"])
    error_message = "Sorted, with a filter, with a key."
  }

  assert {
    condition     = length(google_bigquery_table.table["carriers"].time_partitioning) == 0 && google_bigquery_table.table["carriers"].clustering == null && google_bigquery_table.table["carriers"].require_partition_filter == null
    error_message = "A table without partitions has none."
  }

  assert {
    condition     = alltrue([for table in google_bigquery_table.table : table.deletion_protection == true && table.labels["pipeline"] == "flights"])
    error_message = "Every table is protected and has its label."
  }

  assert {
    condition     = google_bigquery_dataset.dataset.delete_contents_on_destroy == false && google_bigquery_dataset.dataset.location == "EU" && google_bigquery_dataset.dataset.labels["pipeline"] == "flights"
    error_message = "The dataset is protected, where it was said, and has its label."
  }

  assert {
    condition     = length(google_bigquery_dataset.dataset.access) == 0
    error_message = "Who may use the dataset is said in modules/identity alone."
  }

  assert {
    condition     = output.tables["rows_speed"] == "demo-project.flights.rows_speed"
    error_message = "As a `bigquery` sink names it."
  }
}

run "a_schema_that_is_none_is_refused" {
  command = plan
  module { source = "./modules/warehouse" }
  variables { tables = { rows = { schema = "carrier STRING" } } }
  expect_failures = [var.tables]
}

run "a_partition_column_that_is_not_there_is_refused" {
  command = plan
  module { source = "./modules/warehouse" }
  variables { tables = { rows = { schema = "[{\"name\": \"a\", \"type\": \"DATE\"}]", partition_by = { column = "b" } } } }
  expect_failures = [var.tables]
}

run "hours_of_a_date_are_refused" {
  command = plan
  module { source = "./modules/warehouse" }
  variables { tables = { rows = { schema = "[{\"name\": \"a\", \"type\": \"DATE\"}]", partition_by = { column = "a", unit = "hour" } } } }
  expect_failures = [var.tables]
}

run "a_week_is_no_partition" {
  command = plan
  module { source = "./modules/warehouse" }
  variables { tables = { rows = { schema = "[{\"name\": \"a\", \"type\": \"DATE\"}]", partition_by = { column = "a", unit = "week" } } } }
  expect_failures = [var.tables]
}

run "expiry_without_partitions_is_refused" {
  command = plan
  module { source = "./modules/warehouse" }
  variables { tables = { rows = { schema = "[{\"name\": \"a\", \"type\": \"DATE\"}]", partition_expiration_days = 3 } } }
  expect_failures = [var.tables]
}

run "five_columns_to_sort_by_are_refused" {
  command = plan
  module { source = "./modules/warehouse" }
  variables { tables = { rows = { schema = jsonencode([for name in ["a", "b", "c", "d", "e"] : { name = name, type = "STRING" }]), cluster_by = ["a", "b", "c", "d", "e"] } } }
  expect_failures = [var.tables]
}

run "sorting_by_a_column_that_is_not_there_is_refused" {
  command = plan
  module { source = "./modules/warehouse" }
  variables { tables = { rows = { schema = "[{\"name\": \"a\", \"type\": \"DATE\"}]", cluster_by = ["b"] } } }
  expect_failures = [var.tables]
}

run "a_speed_table_that_is_named_twice_is_refused" {
  command = plan
  module { source = "./modules/warehouse" }
  variables { tables = { rows = { schema = "[{\"name\": \"a\", \"type\": \"DATE\"}]", speed = true }, rows_speed = { schema = "[{\"name\": \"a\", \"type\": \"DATE\"}]" } } }
  expect_failures = [var.tables]
}
