"""Deduplicate equals the pure rule for any split and order, on every local runner, and whatever is retried."""

from __future__ import annotations

import datetime as dt
import os
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.io.filesystem import FileMetadata
from apache_beam.io.filesystems import FileSystems
from apache_beam.io.localfilesystem import LocalFileSystem
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.test_pipeline import TestPipeline as BarePipeline
from apache_beam.testing.test_stream import TestStream as Timeline
from apache_beam.testing.util import BeamAssertException, assert_that, equal_to
from apache_beam.transforms.window import FixedWindows, TimestampedValue, WindowedValue
from apache_beam.utils.timestamp import Timestamp
from hypothesis import given, settings
from hypothesis import strategies as st

from beam_pipelines.arrow.concat import concat
from beam_pipelines.arrow.contract import Column, Contract
from beam_pipelines.arrow.duplicates import Comparison, comparison, deduplicate_batch
from beam_pipelines.arrow.keys import DeduplicateRule
from beam_pipelines.arrow.schema import ARRIVAL, KEY_HASH, POSITION, PROVENANCE, SOURCE, provenance
from beam_pipelines.errors import RunError, SpecError
from beam_pipelines.transforms import spill
from beam_pipelines.transforms.deduplicate import (
    Deduplicate,
    Deduplicated,
    DeduplicatedWithDead,
    DigestCandidates,
    FindCandidates,
    FindDuplicates,
    KeepRows,
    SpillRows,
)
from beam_pipelines.transforms.spill import SpillFolder, cleanup, sweep, temp_location_of
from tests.laws import share

CONTRACT = Contract(
    key=("id",), event_time="at", columns={"id": Column(type="string"), "at": Column(type="timestamp"), "v": Column(type="int64")}
)
RULE = DeduplicateRule(within="5us")
HOW = comparison(RULE, contract=CONTRACT)

Row = tuple[str, str, int | None, int]


def batch_of(rows: list[Row], source: str = "f", start: int = 0) -> pa.RecordBatch:
    """(source, id, at, v) rows; positions count from `start`."""
    columns = provenance(source, pa.array(range(start, start + len(rows)), pa.int64()))
    columns[0] = pa.array([r[0] for r in rows], pa.string()).dictionary_encode()
    columns += [pa.array([r[1] for r in rows], pa.string()), pa.array([r[2] for r in rows], pa.int64()).cast(pa.timestamp("us", "UTC"))]
    return pa.record_batch([*columns, pa.array([r[3] for r in rows], pa.int64())], names=[*PROVENANCE.names, "id", "at", "v"])


row = st.tuples(st.sampled_from("ab"), st.sampled_from(["x", "y", "z", "zz"]), st.one_of(st.none(), st.integers(0, 20)), st.integers(0, 2))


@st.composite
def split(draw: st.DrawFn) -> list[pa.RecordBatch]:
    """Batches, some empty, that together are rows with distinct row_ids."""
    parts = draw(st.lists(st.lists(row, max_size=8), max_size=6))
    starts = [sum(map(len, parts[:i])) for i in range(len(parts))]
    return [batch_of(part, start=start) for part, start in zip(parts, starts, strict=True)]


def rows_of(batches: Iterable[pa.RecordBatch]) -> list[str]:
    return sorted(repr(r) for b in batches for r in b.to_pylist())


def expected(batches: list[pa.RecordBatch], how: Comparison = HOW) -> list[str]:
    return rows_of([deduplicate_batch(concat(batches), how)]) if batches else []


# ----------------------------------------------------------------------- the stages by hand: any grouping, any replay


def outputs(fn: beam.DoFn, elements: Iterable[Any], *arguments: Any) -> Iterator[tuple[str, Any]]:
    """One bundle of `fn`: (tag, value) of all that it emits."""
    fn.setup()
    fn.start_bundle()
    emitted = [o for e in elements for o in fn.process(e, *arguments) or ()]
    emitted += fn.finish_bundle() or ()
    for output in emitted:
        tag = ""
        if isinstance(output, beam.pvalue.TaggedOutput):
            tag, output = output.tag, output.value
        yield tag, output.value if isinstance(output, WindowedValue | TimestampedValue) else output


def grouped(pairs: Iterable[tuple[Any, Any]], chance: random.Random) -> list[tuple[Any, list[Any]]]:
    table: dict[Any, list[Any]] = {}
    for key, value in chance.sample(found := list(pairs), len(found)):
        table.setdefault(key, []).append(value)
    return list(table.items())


def by_hand(
    batches: list[pa.RecordBatch], folder: SpillFolder, how: Comparison = HOW, seed: int = 0, first: Callable[..., Any] = outputs
) -> tuple[list[pa.RecordBatch], list[Any]]:
    """What a runner does, with every shuffle in an order of its own."""
    chance = random.Random(seed)
    spilled = list(first(SpillRows(how, folder), chance.sample(batches, len(batches)), Timestamp(0)))
    hashes, files = [v for tag, v in spilled if not tag], [v for tag, v in spilled if tag]
    candidates = [v for _, v in outputs(FindCandidates(), grouped(hashes, chance))]
    copies = [v for _, v in outputs(DigestCandidates(how, folder), grouped(candidates, chance))]
    drops = [v for _, v in outputs(FindDuplicates(how), grouped(copies, chance))]
    kept = list(outputs(KeepRows(folder), grouped([*files, *drops], chance)))
    return [v for tag, v in kept if not tag], [v for tag, v in kept if tag]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> SpillFolder:
    return SpillFolder.of(str(tmp_path_factory.mktemp("temp")), "run")


@share(15)
@given(batches=split(), seed=st.integers(0, 9))
def test_any_split_and_order_gives_the_rules_answer(folder: SpillFolder, batches: list[pa.RecordBatch], seed: int) -> None:
    kept, counts = by_hand(batches, folder, seed=seed)
    assert rows_of(kept) == expected(batches)
    before, after = Counter(r[SOURCE] for b in batches for r in b.to_pylist()), Counter(r[SOURCE] for b in kept for r in b.to_pylist())
    dropped: Counter[str] = Counter()
    for _, source, outcome, detail, n in counts:
        assert (outcome, detail) == ("duplicate", "")
        dropped[source] += n
    assert before == after + dropped


@share(8)
@given(batches=split())
def test_a_replayed_bundle_changes_nothing(folder: SpillFolder, batches: list[pa.RecordBatch]) -> None:
    def fails_once(fn: beam.DoFn, *arguments: Any) -> Iterator[tuple[str, Any]]:
        list(outputs(fn, *arguments))  # rows are written, then the bundle is lost
        return outputs(fn, *arguments)

    assert rows_of(by_hand(batches, folder, first=fails_once)[0]) == expected(batches)


def test_every_later_stage_gives_the_same_when_replayed(tmp_path: Path) -> None:
    folder, batches = SpillFolder.of(str(tmp_path), "run"), [batch_of([("a", "x", 0, 0), ("a", "x", 0, 0)])]
    first, again = by_hand(batches, folder), by_hand(batches, folder)
    assert rows_of(first[0]) == rows_of(again[0])
    (name,) = [v[0] for tag, v in outputs(SpillRows(HOW, folder), batches, Timestamp(0)) if tag]
    note = (name, [(0, b""), (1, b"\x01\x00")])
    assert [str(o) for o in outputs(KeepRows(folder), [note])] == [str(o) for o in outputs(KeepRows(folder), [note])]


def test_equal_hashes_of_different_keys_are_told_apart(folder: SpillFolder) -> None:
    batch = batch_of([("a", i, 0, 0) for i in ("x", "y", "x")])
    batch = batch.append_column(KEY_HASH, pa.array([7, 7, 7], pa.uint64()))
    kept, _ = by_hand([batch], folder)
    assert [b.column("id").to_pylist() for b in kept] == [["x", "y"]]
    assert KEY_HASH not in kept[0].schema.names


def test_rows_without_provenance(folder: SpillFolder) -> None:
    kept, counts = by_hand([pa.record_batch({"id": [1, 2]}), pa.record_batch({"id": [2, 3]})], folder, comparison("id"))
    assert sorted(i for b in kept for i in b.column("id").to_pylist()) == [1, 2, 3]
    assert [c[1:] for c in counts] == [("", "duplicate", "", 1)]


def test_batches_of_different_schemas_meet(folder: SpillFolder) -> None:
    other = pa.record_batch({"id": [1], "extra": ["a"], SOURCE: ["plain text"], POSITION: pa.array([1], pa.int32())})
    batches = [other, pa.record_batch({"id": [1, 2]}), batch_of([("a", "x", 0, 0)]).set_column(3, "id", pa.array([2]))]
    kept, _ = by_hand(batches, folder, comparison("id", content=[]))
    assert sorted(i for b in kept for i in b.column("id").to_pylist()) == [1, 2]


def test_a_huge_batch_is_laid_aside_in_pieces_and_small_ones_together(tmp_path: Path) -> None:
    def files(batches: list[pa.RecordBatch], run: str) -> int:
        folder = SpillFolder.of(str(tmp_path), run)
        kept, _ = by_hand(batches, folder, comparison("id"))
        assert sorted(i for b in kept for i in b.column("id").to_pylist()) == list(range(150_000))
        return len(os.listdir(folder.path))

    ids = pa.record_batch({"id": pa.array(range(150_000))})
    assert 3 <= files([ids, ids.slice(0, 500)], "huge") <= 4
    assert files([ids.slice(i, 100) for i in range(0, 150_000, 100)], "small") <= 5


# ------------------------------------------------------------------------------------------------------- on real runners

BATCHES = [
    batch_of([("a", "x", 0, 0), ("a", "y", 3, 1), ("a", "x", 2, 0)]),
    batch_of([("b", "y", 4, 1), ("b", "z", 0, 2), ("b", "x", 9, 0)], start=10),
    batch_of([], start=20),
]


def holds(batches: list[pa.RecordBatch]) -> Callable[[list[dict[str, Any]]], None]:
    want = expected(batches)

    def check(got: list[dict[str, Any]]) -> None:
        if sorted(map(repr, got)) != want:
            raise BeamAssertException(f"got {got}; expected {want}")

    return check


def assert_deduplicated(pipeline: beam.Pipeline, temp_location: Path | None) -> None:
    done = pipeline | beam.Create(BATCHES) | Deduplicate(RULE, contract=CONTRACT, temp_location=temp_location and str(temp_location))
    assert_that(done.rows | beam.FlatMap(lambda b: b.to_pylist()), holds(BATCHES), label="Rows")
    per_source = done.counts | beam.MapTuple(lambda _, source, outcome, detail, n: ((source, outcome, detail), n)) | beam.CombinePerKey(sum)
    assert_that(per_source, equal_to([(("a", "duplicate", ""), 1), (("b", "duplicate", ""), 1)]), label="Counts")


def test_fn_api_runner(tmp_path: Path) -> None:
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        assert_deduplicated(pipeline, tmp_path)


def test_bare_test_pipeline() -> None:
    with BarePipeline() as pipeline:
        assert_deduplicated(pipeline, None)


def test_every_bundle_repeated(tmp_path: Path) -> None:
    with beam.Pipeline(runner="FnApiRunner", options=PipelineOptions(["--direct_runner_bundle_repeat=2"])) as pipeline:
        assert_deduplicated(pipeline, tmp_path)


@pytest.mark.slow
def test_workers_share_nothing_but_temp_location(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    private, shared = tmp_path / "private", tmp_path / "shared"
    private.mkdir()
    # Beam starts its workers by a shell: each gets a temporary root of its own
    monkeypatch.setattr(sys, "executable", f"TMPDIR=$(mktemp -d {private}/XXXXXX) {sys.executable}")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(p for p in sys.path if p))
    options = PipelineOptions(["--direct_running_mode=multi_processing", "--direct_num_workers=2"])
    with beam.Pipeline(runner="FnApiRunner", options=options) as pipeline:
        assert_deduplicated(pipeline, shared)
    assert len(list(private.iterdir())) == 2
    assert not list(private.rglob("*.arrow"))
    assert list(shared.rglob("*.arrow"))


@settings(max_examples=3)
@given(batches=split())
def test_a_runner_agrees_with_the_rule(batches: list[pa.RecordBatch]) -> None:
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        rows = (pipeline | beam.Create(batches, reshuffle=False) | Deduplicate(RULE, contract=CONTRACT)).rows
        assert_that(rows | beam.FlatMap(lambda b: b.to_pylist()), holds(batches))


def test_dead_letters_and_counts_of_the_stage_before_go_on(tmp_path: Path) -> None:
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        rows = pipeline | "Rows" >> beam.Create(BATCHES)
        dead, counts = pipeline | "Dead" >> beam.Create(["reject"]), pipeline | "Counts" >> beam.Create([("u", "a", "dead", "d", 1)])
        done = DeduplicatedWithDead(rows, dead, counts) | Deduplicate(RULE, contract=CONTRACT, temp_location=str(tmp_path))
        assert isinstance(done, DeduplicatedWithDead)
        assert_that(done.dead, equal_to(["reject"]), label="DeadGoOn")
        assert_that(
            done.counts | beam.Map(lambda c: c[2]) | beam.combiners.Count.PerElement(),
            equal_to([("dead", 1), ("duplicate", 2)]),
            label="CountsGoOn",
        )
        plain = Deduplicated(rows, counts) | "Plain" >> Deduplicate("id", temp_location=str(tmp_path))
        assert isinstance(plain, Deduplicated)


def test_a_batch_alone_keeps_its_timestamp(tmp_path: Path) -> None:
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        rows = pipeline | beam.Create([BATCHES[0]]) | beam.Map(lambda b: TimestampedValue(b, 12.5))
        kept = (rows | Deduplicate("id", temp_location=str(tmp_path))).rows
        assert_that(kept | beam.Map(lambda b, t=beam.DoFn.TimestampParam: t.micros), equal_to([12_500_000]))


def test_labels_are_a_promise(tmp_path: Path) -> None:
    pipeline = beam.Pipeline(runner="FnApiRunner")
    pipeline | beam.Create(BATCHES) | Deduplicate("id", temp_location=str(tmp_path))
    labels = {t.unique_name for t in pipeline.to_runner_api().components.transforms.values()}
    inside = {name.removeprefix("Deduplicate/").split("/")[0] for name in labels if name.startswith("Deduplicate/")}
    assert inside == {"SpillRows", "ByHash", "FindCandidates", "CandidatesByFile", "DigestCandidates", "ByDigest", "FindDuplicates", "FilesAndDuplicates", "ByFile", "KeepRows"}  # fmt: skip


# ------------------------------------------------------------------------------------------------------ what is refused


def test_a_stream_needs_within() -> None:
    with pytest.raises(SpecError, match="a stream needs `within`"):
        beam.Pipeline(runner="FnApiRunner") | Timeline() | Deduplicate("id")


def test_windows_are_refused() -> None:
    with pytest.raises(SpecError, match="global window"):
        beam.Pipeline(runner="FnApiRunner") | beam.Create(BATCHES) | beam.WindowInto(FixedWindows(1)) | Deduplicate("id")


def test_a_key_that_is_not_there() -> None:
    with pytest.raises(Exception, match="did you mean 'id'"), beam.Pipeline(runner="FnApiRunner") as pipeline:
        pipeline | beam.Create(BATCHES) | Deduplicate("idd")


def test_no_key_is_refused_at_construction() -> None:
    with pytest.raises(SpecError, match="no key"):
        Deduplicate()


# ------------------------------------------------------------------------------------------------------------ the files


def test_a_spill_file_comes_back_as_it_was(tmp_path: Path) -> None:
    folder = SpillFolder.of(str(tmp_path), "run")
    tail = batch_of([("a", "x", None, 1), ("b", "y", 2, 2)]).slice(1)
    assert folder.read(folder.write(tail)).equals(tail)


@pytest.mark.parametrize("break_it", [os.remove, lambda path: os.truncate(path, 100)], ids=["gone", "cut"])
def test_a_lost_or_broken_file_is_a_clear_error(tmp_path: Path, break_it: Callable[[str], None]) -> None:
    folder = SpillFolder.of(str(tmp_path), "run")
    name = folder.write(BATCHES[0])
    break_it(folder.file(name))
    with pytest.raises(RunError, match=f"{name}.*cannot be read back.*temp_location must be one place that all workers share"):
        list(outputs(KeepRows(folder), [(name, [(0, b"")])]))


def test_a_place_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot lay rows aside"):
        SpillFolder.of(str(tmp_path / "file"), "run").write(BATCHES[0])


def test_cleanup_takes_one_run_and_nothing_else(tmp_path: Path) -> None:
    for run in ("one", "other"):
        SpillFolder.of(str(tmp_path), run).write(BATCHES[0])
    (tmp_path / "one" / "users.txt").write_text("kept")
    assert cleanup(str(tmp_path), "one") == 1
    assert cleanup(str(tmp_path), "one") == 0
    assert {p.name for p in tmp_path.rglob("*") if p.suffix} == {"users.txt", *(p.name for p in (tmp_path / "other").rglob("*.arrow"))}
    assert cleanup(str(tmp_path), "other") == 1
    assert not (tmp_path / "other").exists()


def test_two_cleanups_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    folder = SpillFolder.of(str(tmp_path), "run")
    here = folder.file(folder.write(BATCHES[0]))
    assert spill._delete([folder.file("gone before"), here]) == 2
    assert not os.path.exists(here)


def test_sweep_takes_what_is_old(tmp_path: Path) -> None:
    old, new = (SpillFolder.of(str(tmp_path), run) for run in ("old", "new"))
    old_file, new_file = old.file(old.write(BATCHES[0])), new.file(new.write(BATCHES[0]))
    now = dt.datetime(2026, 1, 9, tzinfo=dt.UTC).timestamp()
    os.utime(old_file, (now - 700_000, now - 700_000))
    os.utime(new_file, (now - 60, now - 60))
    assert sweep(str(tmp_path), now_s=now) == 1
    assert not os.path.exists(old_file)
    assert os.path.exists(new_file)


def test_cleanup_of_nothing(tmp_path: Path) -> None:
    assert cleanup(str(tmp_path / "never"), "run") == 0
    assert sweep(str(tmp_path / "never")) == 0


def test_temp_location_is_the_pipelines_else_a_folder_of_this_machine(tmp_path: Path) -> None:
    assert temp_location_of(PipelineOptions([f"--temp_location={tmp_path}"])) == str(tmp_path)
    made = temp_location_of(PipelineOptions([]))
    assert os.path.isdir(made)
    assert made.startswith(tempfile.gettempdir())


class DepotFileSystem(LocalFileSystem):  # type: ignore[misc]
    """A remote store, as far as Beam can tell: `depot:///folder/file`, reached through Beam's FileSystems only."""

    @classmethod
    def scheme(cls) -> str:
        return "depot"

    def join(self, basepath: str, *paths: str) -> str:
        return "/".join([basepath.rstrip("/"), *paths])

    def create(self, path: str, *arguments: Any, **options: Any) -> Any:
        return super().create(path.removeprefix("depot://"), *arguments, **options)

    def open(self, path: str, *arguments: Any, **options: Any) -> Any:
        return super().open(path.removeprefix("depot://"), *arguments, **options)

    def delete(self, paths: list[str]) -> None:
        super().delete([p.removeprefix("depot://") for p in paths])

    def _list(self, dir_or_prefix: str) -> Iterator[FileMetadata]:
        for found in super()._list(dir_or_prefix.removeprefix("depot://")):
            yield FileMetadata("depot://" + found.path, found.size_in_bytes, found.last_updated_in_seconds)


def test_a_remote_temp_location(tmp_path: Path) -> None:
    depot = f"depot://{tmp_path}"
    folder = SpillFolder.of(depot, "run")
    kept, _ = by_hand(BATCHES, folder)
    assert rows_of(kept) == expected(BATCHES)
    assert len(list(tmp_path.rglob("*.arrow"))) == 1
    with pytest.raises(RunError, match="cannot be read back"):
        folder.read("missing")
    assert FileSystems.get_scheme(folder.path) == "depot"
    assert cleanup(depot, "run") == 1
    assert not list(tmp_path.rglob("*.arrow"))


def test_provenance_is_kept(folder: SpillFolder) -> None:
    kept, _ = by_hand(BATCHES, folder)
    assert all({SOURCE, POSITION, ARRIVAL} <= set(b.schema.names) for b in kept)
