"""The report of a run: whatever data and runs say, the page is whole, safe, of bounded size, and its numbers are those of the data."""

from __future__ import annotations

import html
import re
import shutil
from collections import Counter
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_pipelines.errors import RunError
from beam_pipelines.places import write_bytes
from beam_pipelines.serving.report import Agreement, report_page
from beam_pipelines.serving.report.facts import LATENESS, MOST_BARS, Facts, Unknown
from beam_pipelines.serving.report.markup import duration, share, tag, text
from beam_pipelines.serving.report.verdict import balances, dead_of, usual
from beam_pipelines.serving.tables import stale_table
from beam_pipelines.sinks.epochs import handed_in
from beam_pipelines.sinks.ledger import Line
from beam_pipelines.sinks.results import CheckResult, Metadata, OutputResult, RunResults, ThresholdResult, metadata
from beam_pipelines.sinks.run import RunInfo, utc_now
from tests import laws
from tests.sinks.lake import Lake
from tests.sinks.speed_lake import SOURCE, Speed, letters, rows

HOSTILE = "<script>alert(1)</script>\"'&<img src=x onerror=alert(1)>\x1b\u202e"
VOID = {"meta", "br"}
ALLOWED = set(
    "html head meta title style body header main footer section div span p h1 h2 h3 ul li dl dt dd nav a table thead tbody tr th td code pre b i "
    "figure figcaption details summary svg desc rect path text tspan br".split()
)


class Page(HTMLParser):
    """A page's elements, their attributes, and its text; fails where elements are not closed in order."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.elements: Counter[str] = Counter()
        self.attributes: set[str] = set()
        self.links: set[str] = set()
        self.ids: set[str] = set()
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(page.decode())
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements[tag] += 1
        self.attributes |= {name for name, _ in attrs}
        self.links |= {value or "" for name, value in attrs if name in ("href", "src", "xlink:href", "action")}
        self.ids |= {value or "" for name, value in attrs if name == "id"}
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.words.append(data)

    @property
    def said(self) -> str:
        return " ".join("".join(f"{w} " for w in self.words).split())


def parsed(page: bytes) -> Page:
    """The page, safe: known elements only, nothing that runs, nothing from elsewhere."""
    found = Page(page)
    assert set(found.elements) <= ALLOWED
    assert not [a for a in found.attributes if a.startswith("on")]
    assert all(link.startswith("#") and link[1:] in found.ids for link in found.links)
    assert b"url(" not in page
    assert b"@import" not in page
    assert b"\x1b" not in page
    assert "\u202e" not in page.decode()
    return found


def a_run(**more: Any) -> RunResults:
    about = Metadata(
        more.pop("run_id", "r1"), more.pop("pipeline", "p"), "1", "c1", more.pop("mode", "batch"), "FnApiRunner", "p.yaml",
        more.pop("started_at", "2026-01-01T00:00:00Z"), "2026-01-01T00:00:09Z", more.pop("elapsed_s", 9.0), "0.1.0",
    )  # fmt: skip
    return RunResults(about, more.pop("status", "success"), **more)


# ------------------------------------------------------------------------------------------------------------- safe text


@given(st.text())
def test_text_is_escaped_and_says_the_same(value: str) -> None:
    shown = text(value)
    assert not set(shown) & set("<>\"'")
    assert shown.isprintable()
    if value.isprintable():
        assert html.unescape(shown) == value
    assert Page(tag("p", value, title=value).encode()).elements == Counter({"p": 1})


WORDS = st.one_of(st.sampled_from([HOSTILE, "", "plain"]), st.text(max_size=30))
COUNTS = st.integers(0, 10**13)
BY_WORD = st.dictionaries(WORDS, COUNTS, max_size=4)
LINES = st.builds(Line, WORDS, COUNTS, COUNTS, COUNTS, COUNTS, BY_WORD, BY_WORD, BY_WORD, BY_WORD)
CHECKS = st.builds(
    CheckResult,
    WORDS,
    st.sampled_from(["pass", "warn", "fail"]),
    st.sampled_from(["warn", "fail", "dead_letter"]),
    COUNTS,
    COUNTS,
    WORDS,
    WORDS,
    WORDS,
)
OUTPUTS = st.builds(
    OutputResult,
    WORDS,
    st.sampled_from(["rows", "dead_letters", "hourly"]),
    WORDS,
    WORDS,
    COUNTS,
    COUNTS,
    COUNTS,
    st.lists(WORDS, max_size=3).map(tuple),
)
METADATA = st.builds(
    Metadata, WORDS, WORDS, WORDS, WORDS, st.sampled_from(["batch", "stream"]), WORDS, WORDS, WORDS, WORDS, st.floats(0, 1e9), WORDS
)
RUNS = st.builds(
    RunResults, METADATA, st.sampled_from(["success", "failed"]), st.lists(WORDS, max_size=3).map(tuple), st.dictionaries(WORDS, WORDS, max_size=3),
    st.lists(OUTPUTS, max_size=3).map(tuple), st.lists(LINES, max_size=4).map(tuple), BY_WORD, BY_WORD, st.lists(CHECKS, max_size=3).map(tuple),
    st.lists(st.builds(ThresholdResult, WORDS, st.floats(0, 1), st.floats(0, 1), st.sampled_from(["pass", "fail"])), max_size=2).map(tuple),
)  # fmt: skip
AGREEMENTS = st.lists(st.builds(Agreement, WORDS, WORDS, COUNTS, COUNTS, COUNTS, COUNTS, WORDS), max_size=3)


@laws.share(30)
@given(run=RUNS, others=st.lists(RUNS, max_size=2), agreed=AGREEMENTS)
def test_whatever_a_record_says_the_page_is_safe_and_whole(
    tmp_path_factory: pytest.TempPathFactory, run: RunResults, others: list[RunResults], agreed: list[Agreement]
) -> None:
    page = report_page(str(tmp_path_factory.mktemp("state")), run, runs=[run, *others], event_time="t", compare=lambda: agreed)
    assert ("Batch and stream" in parsed(page).said) == bool(agreed)


def test_hostile_data_is_text(tmp_path: Path) -> None:
    """In a dead letter and its record, in names of checks, reasons, sources and runs."""
    speed = Speed(tmp_path)
    batch = letters([1, 2], reason=HOSTILE, name=HOSTILE, source=HOSTILE)
    at = batch.schema.get_field_index("raw")
    speed.letter(batch.set_column(at, batch.schema.field(at), pa.array([HOSTILE.encode(), b"<b>"], batch.schema.field(at).type)))
    run = a_run(
        mode="stream", run_id=HOSTILE, pipeline=HOSTILE, failures=(HOSTILE,), status="failed", args={HOSTILE: HOSTILE},
        ledger=(Line(HOSTILE, 2, 2),), dead_letters={f"prepare:{HOSTILE}": 2}, failing_rows={f"{HOSTILE}.required": 1},
        checks=(CheckResult(HOSTILE, "warn", failing=1, rows=2, expected=HOSTILE, message=HOSTILE),),
    )  # fmt: skip
    found = parsed(report_page(speed.state, run, runs=[run], compare=lambda: [Agreement(HOSTILE, HOSTILE, 1, note=HOSTILE)]))
    assert found.said.count("<script>alert(1)</script>") >= 12
    assert "\\x1b\\u202e" in found.said


def test_of_a_stream_that_failed_uncounted_it_says_so(tmp_path: Path) -> None:
    run = RunResults(metadata(RunInfo("r", "p", str(tmp_path), mode="stream"), finished_at=utc_now()), "failed", ("the disk is full.",))
    said = parsed(report_page(str(tmp_path), run)).said
    assert "What is stored stays; the next start goes on from there." in said
    assert "What is stored was not counted." in said
    assert "the disk is full." in said


# ---------------------------------------------------------------------------------------------------------------- bounded


def test_a_page_is_of_bounded_size_whatever_was_read(tmp_path: Path) -> None:
    long = "x" * 3_000
    many = range(3_000)
    run = a_run(
        failures=tuple(f"{long}{i}" for i in many), args={f"{i}{long}": long for i in many},
        outputs=tuple(OutputResult(f"o{i}{long}", "rows", long, "parquet", 1, 1, 1, (long,) * 9) for i in many),
        ledger=tuple(Line(f"{long}{i}", 10, i % 3, written={"rows": 10 - i % 3}, late={f"a{i}{long}": 1}) for i in many),
        dead_letters={f"stage{i}:{long}": 1 for i in many}, failing_rows={f"c{i}{long}.required": 1 for i in many},
        checks=tuple(CheckResult(f"c{i}{long}", "warn", failing=1, rows=9, expected=long, message=long) for i in many),
    )  # fmt: skip
    page = report_page(str(tmp_path), run, runs=[run] * 100, compare=lambda: [Agreement(long, long, 1, note=long)] * 3_000)
    assert len(page) < 400_000
    assert "2,989 other sources" in page.decode()  # of 3,000 sources some are drawn, the others are one


# ---------------------------------------------------------------------------------------------------------- what is asked

DAY = 86_400_000_000
INSTANTS = st.one_of(st.none(), st.integers(0, 40 * DAY), st.integers(-(10**15), 4 * 10**15))


def timed(event: list[int | None]) -> pa.RecordBatch:
    return rows(range(len(event)), more={"t": pa.array(event, pa.timestamp("us", "UTC"))})


def reference(late: list[int]) -> tuple[int, ...]:
    return tuple(sum(1 for x in late if sum(x >= edge for edge in LATENESS) == i) for i in range(len(LATENESS) + 1))


@laws.share(12)
@given(st.lists(INSTANTS, min_size=1, max_size=40))
def test_every_row_is_in_one_bar_and_one_bucket(tmp_path_factory: pytest.TempPathFactory, event: list[int | None]) -> None:
    speed = Speed(tmp_path_factory.mktemp("lake"))
    speed.store(speed.writing("rows", provenance=False), timed(event))
    run = a_run(mode="stream", outputs=(OutputResult("rows", "rows", "", "parquet", len(event), 1, 1, (), status="stored"),))
    facts = Facts(speed.state, run, event_time="t")
    times = facts.times()
    dated = [t for t in event if t is not None]
    assert (times.there, times.event.rows, times.arrival.rows) == (len(event), len(dated), len(event))
    for line, known in ((times.by_event, dated), (times.by_arrival, arrivals(speed))):
        assert (line is not None) == bool(known)
        if line is not None:
            assert len(line.bars) <= MOST_BARS
            assert sum(line.bars) + line.before + line.after + line.undated == len(event)
            for i in range(len(line.bars)):
                start = line.start + i * line.width
                assert line.bars[i] == sum(start <= t < start + line.width for t in known)
    late = [a - t for a, t in zip(arrivals(speed), event, strict=True) if t is not None]
    assert (times.lateness is not None) == bool(late)
    if times.lateness is not None:
        assert times.lateness.buckets == reference(late)
        assert (times.lateness.least, times.lateness.most) == (min(late), max(late))
    parsed(report_page(speed.state, run, event_time="t"))


def arrivals(speed: Speed) -> list[int]:
    found = duckdb.connect().execute(
        f"SELECT epoch_us(_arrival_time) FROM read_parquet('{speed.known['rows'].folder}/**/*.parquet') ORDER BY _position"
    )
    return [a for (a,) in found.fetchall()]


def test_one_row_of_another_century_does_not_flatten_the_picture(tmp_path: Path) -> None:
    speed = Speed(tmp_path)
    speed.store(speed.writing("rows"), timed([-60 * 365 * DAY, *(n * 60_000_000 for n in range(20_000))]))
    line = Facts(speed.state, a_run(mode="stream"), event_time="t").times().by_event
    assert line is not None
    assert line.before >= 1
    assert sum(n > 0 for n in line.bars) > 50


def test_a_run_is_told_from_those_that_wrote_before_and_after_it(tmp_path: Path) -> None:
    """Rows of a batch are those in the files that it committed and that nobody has replaced since."""
    lake = Lake(tmp_path)
    from tests.sinks.lake import rows as lake_rows

    first = lake.go("r1", lake.output("rows"), lake_rows((1, "a"), (2, "b"), (3, "c")))
    second = lake.go("r2", lake.output("rows"), lake_rows((4, "c"), (5, "d")))
    assert Facts(lake.state, first).times().there == 2
    assert Facts(lake.state, second).times().there == 2
    said = parsed(report_page(lake.state, first)).said
    assert "Of the 3 rows that the run wrote, 2 are still there" in said
    assert "2 of 3 files live; later runs replaced the others" in said
    lake.go("r3", lake.output("rows"), lake_rows((6, "a"), (7, "b")))
    with pytest.raises(Unknown, match="replaced all"):
        Facts(lake.state, first).times()


def test_files_that_are_gone_are_said_to_be(tmp_path: Path) -> None:
    from tests.sinks.lake import rows as lake_rows

    lake = Lake(tmp_path)
    run = lake.go("r1", lake.output("rows"), lake_rows((1, "a"), (2, "b")))
    next((tmp_path / "rows").glob("**/*.parquet")).unlink()
    said = parsed(report_page(lake.state, run, event_time="t")).said
    assert "The rows cannot be read" in said
    assert "1 of 2 files gone" in said
    shutil.rmtree(tmp_path / "rows")
    assert "2 of 2 files gone" in parsed(report_page(lake.state, run)).said
    shutil.rmtree(lake.state)
    assert "no output of rows that can be read" in parsed(report_page(lake.state, run)).said


# ---------------------------------------------------------------------------------------------------------------- verdict


def test_the_equation_says_which_rows_are_missing(tmp_path: Path) -> None:
    line = Line("a", 10, 1, 1, 1, written={"rows": 5})
    run = a_run(status="failed", failures=("the ledger does not balance: rows, source a: …",), ledger=(line,))
    (balance,) = balances(run)
    assert (balance.missing, balance.balances) == (2, False)
    assert "2 rows missing" in parsed(report_page(str(tmp_path), run)).said


@given(
    read=st.integers(0, 99),
    dead=st.integers(0, 9),
    refused=st.integers(0, 9),
    late=st.integers(0, 9),
    mode=st.sampled_from(["batch", "stream"]),
)
def test_each_output_of_rows_has_its_own_equation(read: int, dead: int, refused: int, late: int, mode: str) -> None:
    written = {"rows": read - dead, "rows_csv": read - dead - refused}
    run = a_run(mode=mode, ledger=(Line("a", read, dead, written=written, refused={"rows_csv": refused}, late={"hourly": late}),))
    found = {b.output: b for b in balances(run)}
    assert {name: b.balances for name, b in found.items()} == {"rows": True, "rows_csv": True}
    assert all(b.missing == 0 for b in found.values())
    assert dead_of(run) == dead + refused


def test_rows_of_other_times_leave_by_a_door_of_their_own(tmp_path: Path) -> None:
    from dataclasses import replace

    run = a_run(ledger=(Line("a", 10, 1, written={"rows": 5}, outside=4),))
    run = replace(run, metadata=replace(run.metadata, range=("2013-12-01", "2013-12-02"), input="archive"))
    (balance,) = balances(run)
    assert (balance.outside, balance.balances) == (4, True)
    said = parsed(report_page(str(tmp_path), run)).said
    assert "4 outside the range" in said
    assert "over [2013-12-01, 2013-12-02)" in said


def test_a_run_of_a_service_has_a_link_to_its_job(tmp_path: Path) -> None:
    run = a_run()
    page, state = "https://console.cloud.google.com/dataflow/jobs/europe-west1/j1?project=p", str(tmp_path)
    assert "its page at the service" not in parsed(report_page(state, run)).said
    for url, there in ((page, True), ("javascript:alert(1)", False)):
        write_bytes(handed_in(state, run.metadata.run_id), msgspec.json.encode({"run_id": run.metadata.run_id, "taken": True, "url": url}))
        assert (f'href="{url}"' in report_page(state, run).decode()) is there


def test_a_stream_that_was_interrupted_has_open_rows(tmp_path: Path) -> None:
    run = a_run(mode="stream", ledger=(Line(SOURCE, 10, written={"rows": 7}),))
    (balance,) = balances(run)
    assert (balance.open, balance.balances) == (3, True)
    assert "3 still open" in parsed(report_page(str(tmp_path), run)).said


def test_runs_are_compared_with_good_batches_before_them() -> None:
    def batch(day: int, read: int, **more: Any) -> RunResults:
        return a_run(run_id=f"r{day}", started_at=f"2026-01-{day:02}T00:00:00Z", ledger=(Line("a", read),), **more)

    runs = [batch(1, 10), batch(2, 20), batch(3, 90), batch(4, 1, status="failed"), batch(5, 1, mode="stream"), batch(7, 1)]
    found = usual(batch(6, 50), runs)
    assert found is not None
    assert (found.runs, found.read) == (3, 20)
    assert usual(batch(3, 90), runs) is None


@pytest.mark.parametrize("mode", ["batch", "stream"])
@pytest.mark.parametrize("status", ["success", "failed"])
def test_a_run_without_anything_has_a_page(tmp_path: Path, mode: str, status: str) -> None:
    said = parsed(report_page(str(tmp_path / "nowhere"), a_run(mode=mode, status=status))).said
    assert "Nothing was counted" in said
    assert "No row was refused." in said


def test_layers_that_cannot_be_compared_say_why(tmp_path: Path) -> None:
    def fails() -> list[Agreement]:
        raise RunError("the speed layer is gone.")

    assert "could not be compared: the speed layer is gone." in parsed(report_page(str(tmp_path), a_run(), compare=fails)).said
    broken = parsed(report_page(str(tmp_path), a_run(), stale=fails)).said
    assert "What came too late for the batch is not known: the speed layer is gone." in broken
    found = [Agreement("rows", "2013-12-01", 98, differing=2), Agreement("hourly", "2013-12-01", 100)]
    assert "agree on 99.0 % of 200 rows" in parsed(report_page(str(tmp_path), a_run(), compare=lambda: found)).said


def test_what_came_too_late_for_the_batch_is_summed_by_output_and_run(tmp_path: Path) -> None:
    empty = stale_table(str(tmp_path))
    assert (
        "Nothing has arrived for the times that the batch has answered"
        in parsed(report_page(str(tmp_path), a_run(), stale=lambda: empty)).said
    )
    day, late = datetime(2013, 12, 1, tzinfo=UTC), datetime(2013, 12, 9, tzinfo=UTC)
    counts = [("rows", 0, 2, "b1"), ("rows", 1, 3, "b1"), ("hourly", 1, 1, HOSTILE)]
    table = pa.Table.from_pylist(
        [
            {"output": output, "start": day + timedelta(days=at), "end": day + timedelta(days=at + 1), "run_id": run, "rows": n,
             "first_stored_at": late, "last_stored_at": late + timedelta(hours=at)}
            for output, at, n, run in counts
        ],
        schema=empty.schema,
    )  # fmt: skip
    said = parsed(report_page(str(tmp_path), a_run(), stale=lambda: table)).said
    assert "rows 5 2 [2013-12-01 00:00, 2013-12-03 00:00) 2013-12-09 00:00:00 UTC 2013-12-09 01:00:00 UTC b1" in said
    assert said.index(" rows 5 2 ") < said.index(" hourly 1 1 ")


# ------------------------------------------------------------------------------------------------------------------ words


@given(st.integers(0, 10**12), st.integers(1, 10**12))
def test_a_share_is_0_or_100_percent_only_if_it_is(part: int, whole: int) -> None:
    part = min(part, whole)
    assert (share(part, whole) == "0 %") == (part == 0)
    assert (share(part, whole) == "100 %") == (part == whole)
    assert not re.search(r"[^>] 100\.0+ %|^0\.0+ %", share(part, whole))


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0 s"), (0.25, "250 ms"), (5, "5 s"), (9.04, "9.0 s"), (59.97, "1 min"), (185, "3 min 5 s"), (7_200, "2 h"), (-90, "−1 min 30 s"), (407_379_600, "4,715 d 1 h")],
)  # fmt: skip
def test_spans_are_their_two_largest_units(seconds: float, said: str) -> None:
    assert duration(seconds) == said
