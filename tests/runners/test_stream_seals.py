"""What a stream leaves of values that only a step declares sensitive: nothing in clear, and an archive that a batch reads with the key."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from beam_pipelines import draining
from beam_pipelines.runners import direct
from beam_pipelines.runners.stream import StreamCall, run_stream
from beam_pipelines.sources import pubsub
from beam_pipelines.spec.load import LoadedSpec, load_spec
from tests.pubsub_servers import PubsubServer

SPEC = """
spec: 1
pipeline: people
contract: {{columns: {{id: {{type: int64, max: 3}}, email: {{type: string}}}}, unknown_columns: drop}}
sources: {{stream: [{{pubsub: {subscription}, format: json}}]}}
transform:
  - apply: {{function: "tests.arrow.user_functions:copies_email", columns: {{copy: string, email: string}}, sensitive: {{copy: redact, email: redact}}}}
dead_letters: {{raw_key: env:RAW_KEY}}
sinks: [{{from: rows, parquet: {{path: lake/rows}}}}, {{from: dead_letters, parquet: {{path: lake/dead}}}}]
"""
SENT = [
    *(json.dumps({"id": n, "email": f"secret{n}"}).encode() for n in range(6)),
    b'{"id": 1, "email": secret',
    b'{"id": "q", "email": "secret"}',
]


@pytest.mark.slow
def test_no_file_of_a_stream_holds_what_a_step_declares_sensitive(
    broker: PubsubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in broker.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RAW_KEY", "00" * 32)
    topic, subscription = broker.pair(ack_deadline_seconds=10)
    (tmp_path / "spec.yaml").write_text(SPEC.format(subscription=subscription), "utf-8")
    broker.publish_all(topic, SENT)
    loaded: LoadedSpec = load_spec(tmp_path / "spec.yaml")

    def watch() -> None:
        seen = pubsub.status()
        if seen and all(s.acked == len(SENT) for s in seen):
            draining.request()

    stream = run_stream(loaded, StreamCall(max_duration_s=60, watch=watch))
    assert_hidden(tmp_path, of="archive")
    batch = direct.run_batch(loaded, direct.Call(input="archive"))
    assert_hidden(tmp_path, of="rows")
    for record in (stream, batch):
        assert record.status == "success"
        assert record.dead_letters == {"decode:DECODE": 1, "decode:TYPE": 1, "validate:CHECK": 2}


def assert_hidden(folder: Path, *, of: str) -> None:
    """No file says `secret`, packed or not; some are `of` this."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert any(of in str(path) for path in files)
    for path in files:
        shown = str(pq.read_table(path, partitioning=None).to_pylist()).encode() if path.suffix == ".parquet" else path.read_bytes()
        assert b"secret" not in shown, path
