"""The servers of the cloud tests and what lies in them, one import per service."""

from __future__ import annotations

from tests.cloud.bigquery_orders import google_here, orders_table, wide_table
from tests.cloud.bigquery_server import bigquery, own_bigquery
from tests.cloud.dataflow_lake import batches_with_ids, lake, service
from tests.cloud.gcs_server import gcs, own_gcs

__all__ = ["batches_with_ids", "bigquery", "gcs", "google_here", "lake", "orders_table", "own_bigquery", "own_gcs", "service", "wide_table"]
