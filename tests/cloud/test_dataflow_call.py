"""`run --runner dataflow`, as it is called: what must be said, what is refused, and all of it at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from beam_pipelines.cli.run import run
from beam_pipelines.errors import SpecError
from tests.cloud.dataflow_specs import FLIGHTS, PLAIN

pytestmark = pytest.mark.cloud
SAID = (
    "--project",
    "demo-project",
    "--region",
    "europe-west1",
    "--temp-location",
    "gs://demo-bucket/tmp",
    "--sdk-container-image",
    "r/i:1",
)


def called(folder: Path, *words: str, text: str = PLAIN) -> Any:
    (folder / "pipeline.yaml").write_text(text)
    return CliRunner().invoke(run, [str(folder / "pipeline.yaml"), *words])


def refused(folder: Path, *words: str, text: str = PLAIN) -> str:
    result = called(folder, *words, text=text)
    assert isinstance(result.exception, SpecError), (result.exception, result.output)
    return str(result.exception)


def test_all_that_is_missing_is_told_at_once(tmp_path: Path) -> None:
    text = (
        FLIGHTS.replace("gs://demo-bucket/lake", "lake")
        .replace("gcp:projects/demo-project/secrets/hmac", "env:HMAC")
        .replace("gcp:projects/demo-project/secrets/raw", "file:raw.key")
    )
    said = refused(tmp_path, "--mode", "stream", "--runner", "dataflow", text=text)
    for part in (
        "--project is missing", "--region is missing", "--temp-location is missing", "--sdk-container-image is missing", "state: ", "sources.batch[0].files",
        "lookups.carriers.files", "sinks[0].parquet.path", "sinks[4].parquet.path", "hmac_key: env:HMAC", "dead_letters.raw_key: file:", "Nothing was started",
    ):  # fmt: skip
        assert part in said, part


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (("format: json}]\ndedup", "format: json, endpoint: 'eu-pubsub.googleapis.com'}]\ndedup"), "Dataflow reads Pub/Sub itself, and takes no endpoint"),
        (("sinks:\n", "sinks:\n  - {from: rows, pubsub: {topic: projects/demo-project/topics/t, endpoint: 'http://127.0.0.1:8085'}}\n"), "is this machine"),
        (("projects/demo-project/", "projects/p/"), "Invalid PubSub project name"),
        (("deduplicate:", "transform: [{apply: only_here:f}]\ndeduplicate:"), "lies beside the spec"),
    ],
)  # fmt: skip
def test_what_cannot_work_there_is_refused(tmp_path: Path, change: tuple[str, str], why: str) -> None:
    (tmp_path / "only_here.py").write_text("def f(batch):\n    return batch\n")
    assert change[0] in PLAIN
    graph = str(tmp_path / "graph.json")
    assert why in refused(tmp_path, "--mode", "stream", "--runner", "dataflow", *SAID, "--graph", graph, text=PLAIN.replace(*change))
    assert not Path(graph).exists()


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--mode", "stream", "--runner", "direct", "--project", "p"), "--project: is for --runner dataflow"),
        (("--mode", "batch", "--no-wait"), "--no-wait: is for --runner dataflow"),
        (("--mode", "stream", "--runner", "dataflow", "--until-idle", "5s"), "--until-idle"),
        (("--mode", "stream", "--runner", "dataflow", "--keep-logs"), "--keep-logs"),
        (("--mode", "batch", "--runner", "dataflow", "--new-files"), "--new-files"),
        (("--mode", "batch", "--runner", "dataflow", "--update", *SAID), "--update: replaces a running stream"),
        (("--mode", "batch", "--runner", "dataflow", "--at-least-once", *SAID), "--at-least-once: is a mode of streams"),
        (("--mode", "stream", "--runner", "dataflow", *SAID, "--label", "Team=x"), "--label Team=x"),
        (("--mode", "stream", "--runner", "dataflow", *SAID, "--", "--save_main_session"), "--save_main_session"),
        (("--mode", "stream", "--runner", "dataflow", *SAID, "--", "--template_location=gs://b/t"), "template build"),
        (("--mode", "stream", "--runner", "dataflow", *SAID, "--graph", "g", "--json"), "--graph"),
        (("--mode", "stream", "--runner", "dataflow", *SAID[:4], "--temp-location", "/tmp/x", *SAID[6:]), "expected gs://BUCKET/FOLDER"),
        (("--mode", "stream", "--runner", "dataflow", *SAID, "--network", "a/b"), "--subnetwork"),
    ],
)  # fmt: skip
def test_options_that_would_do_nothing_or_harm_are_refused(tmp_path: Path, words: tuple[str, ...], why: str) -> None:
    assert why in refused(tmp_path, *words)


def test_an_emulator_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", "127.0.0.1:8085")
    assert "workers do not reach an emulator" in refused(tmp_path, "--mode", "stream", "--runner", "dataflow", *SAID)


def test_packages_that_are_shipped_take_the_place_of_an_image(tmp_path: Path) -> None:
    """What Beam stages goes along: here it is only named."""
    (tmp_path / "my_package-1.0.tar.gz").write_bytes(b"")
    (tmp_path / "only_here.py").write_text("def f(batch):\n    return batch\n")
    words = ("--mode", "stream", "--runner", "dataflow", *SAID[:6], "--graph", str(tmp_path / "graph.json"))
    result = called(
        tmp_path,
        *words,
        "--",
        f"--extra_package={tmp_path / 'my_package-1.0.tar.gz'}",
        text=PLAIN.replace("deduplicate:", "transform: [{apply: only_here:f}]\ndeduplicate:"),
    )
    assert result.exception is None, result.exception
    assert (tmp_path / "graph.json").exists()


def test_the_graph_is_written_and_nothing_is_started(tmp_path: Path) -> None:
    result = called(tmp_path, "--mode", "stream", "--runner", "dataflow", *SAID, "--graph", str(tmp_path / "graph.json"))
    assert (result.exception, "nothing was started" in result.output) == (None, True)
