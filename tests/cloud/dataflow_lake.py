"""Where jobs are handed in: a service of Dataflow, a bucket with a file, and how a job there is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from beam_pipelines.runners.dataflow.job import DataflowCall
from tests.cloud.dataflow_service import DataflowService, running_service
from tests.cloud.dataflow_specs import JOB, flights
from tests.cloud.gcs_server import GcsServer


@pytest.fixture
def service() -> Iterator[DataflowService]:
    with running_service() as found:
        yield found


@pytest.fixture
def batches_with_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    """Google's client sends the parts of a batch request without Content-ID, which the service takes and the local server drops."""
    from google.cloud.storage import batch

    made = batch.MIMEApplicationHTTP.__init__

    def with_id(self: Any, *args: Any, **named: Any) -> None:
        made(self, *args, **named)
        if "Content-ID" not in self:
            self["Content-ID"] = f"<{id(self)}>"

    monkeypatch.setattr(batch.MIMEApplicationHTTP, "__init__", with_id)


@pytest.fixture
def lake(gcs: GcsServer, batches_with_ids: None, monkeypatch: pytest.MonkeyPatch) -> str:
    """A bucket with a file of 30 flights and one line that is none."""
    for name, value in gcs.environment.items():
        monkeypatch.setenv(name, value)
    bucket = gcs.bucket()
    gcs.client().bucket(bucket).blob("lake/in/a.json").upload_from_string(flights(30))
    return f"gs://{bucket}/lake"


def call(service: DataflowService, lake: str, mode: Any = "batch", *, run_id: str | None = None, **settings: Any) -> DataflowCall:
    job = replace(JOB, temp_location=lake.removesuffix("lake") + "tmp", **settings)
    return DataflowCall(job, mode, run_id, flags=("--no_auth", f"--dataflow_endpoint={service.url}"))
