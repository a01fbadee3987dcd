"""`compact`: small files become large ones, and what is older than the spec keeps it goes."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import click

from beam_pipelines.cli.options import loaded, log_options, spec_options

if TYPE_CHECKING:
    from collections.abc import Iterator

    from beam_pipelines.serving.upkeep import Layer, Report, Row
    from beam_pipelines.sinks.deletions import Of
    from beam_pipelines.sinks.run import RunInfo
    from beam_pipelines.spec.load import LoadedSpec

_HEAD = ("layer", "of", "folders", "files", "", "bytes", "", "rows", "")
_RIGHT = (False, False, True, True, False, True, False, True, False)
_OF: dict[str, Of] = {"rows": "rows", "dead_letters": "dead letters", "doors": "doors"}
_AGE = {"panes": "ended", "runs": "started", "letters of failed runs": "started"}


@click.command(short_help="Merge small files and delete what is past its retention.")
@spec_options
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@click.option("--wait", is_flag=True, help="Stay a minute longer, until the files that were merged can be deleted.")
@click.option("--json", "as_json", is_flag=True, help="The report as JSON.")
@log_options
def compact(spec: str, set_: tuple[str, ...], parameters_file: str | None, dry_run: bool, wait: bool, as_json: bool) -> int:
    """Merge the small files of SPEC's archive and speed layer, and delete what is older than its `retention` says.

    \b
    beam-pipelines compact flights.yaml --dry-run

    Readers, a stream and batch runs may be at work meanwhile; a call that is killed is brought to its end by the next.
    """
    found = loaded(spec, set_, parameters_file)
    from beam_pipelines.formats.compaction import GRACE_S
    from beam_pipelines.serving.upkeep import upkeep
    from beam_pipelines.sinks.plan import outputs_of
    from beam_pipelines.sinks.run import RunInfo, new_run_id

    run = RunInfo(f"compact-{new_run_id()}", found.spec.pipeline, found.state, mode="compact")
    call = partial(upkeep, found, layers_of(found, run), outputs_of(found.spec, run), run=run)
    done = call(dry_run=dry_run)
    if wait and not dry_run and any(row.after.waiting for row in done.layers):
        time.sleep(GRACE_S + 1)
        again = call()
        rows = tuple(_joined(first, last) for first, last in zip(done.layers, again.layers, strict=True))
        done = type(done)(rows, (*done.deleted, *again.deleted), again.kept, again.before, notes=(*done.notes, *again.notes))
    _show(done, as_json=as_json)
    return 0


def layers_of(found: LoadedSpec, run: RunInfo) -> list[Layer]:
    """Everything that `compact` merges: the archive of each subscription, and what the stream stores of each output."""
    from beam_pipelines.edges import archive_of
    from beam_pipelines.formats import archive_compaction
    from beam_pipelines.formats.archive_files import count_rows as messages
    from beam_pipelines.formats.archive_files import hours, source_folder
    from beam_pipelines.serving.upkeep import Layer
    from beam_pipelines.sinks import speed_compaction
    from beam_pipelines.sinks.speed_files import count_rows

    layers: list[Layer] = []
    for source in found.spec.sources.stream:
        folder = source_folder(archive_of(source, found.state), source.pubsub)
        steps = partial(archive_compaction.compact_steps, folder)
        name = source.pubsub.rpartition("/")[2]
        folders = partial(lambda at: [hour.folder for hour in hours(at)], folder)
        layers.append(Layer(name, "archive", folder, folders, archive_compaction.archive_kind(), steps, messages))
    for writing in speed_compaction.writings_of(found.spec, run) if found.spec.sources.stream else ():
        top, of = writing.layout.folder, writing.output.of
        parts, steps = partial(_parts, top, len(writing.layout.by)), partial(speed_compaction.compact_steps, writing, state=found.state)
        kind = speed_compaction.speed_kind(writing, state=found.state)
        layers.append(Layer(writing.output.name, _OF.get(of, "panes"), top, parts, kind, steps, count_rows))
    return layers


def _parts(top: str, depth: int) -> list[str]:
    from beam_pipelines.sinks.speed_files import folders_of

    return list(folders_of(top, depth))


def _joined(first: Row, last: Row) -> Row:
    return replace(last, before=first.before, merged=first.merged + last.merged, swept=first.swept + last.swept)


def _show(report: Report, *, as_json: bool) -> None:
    if as_json:
        import msgspec

        click.echo(msgspec.json.format(msgspec.json.encode(report), indent=2).decode())
        return
    from beam_pipelines.cli.tables import grid, width_of

    cells = [_cells(row) for row in report.layers]
    nothing = ["no small files to merge: the spec has no stream"]
    for line in grid(_HEAD, cells, right=_RIGHT, width=width_of(sys.stdout)) if cells else nothing:
        click.echo(line)
    for line in _below(report):
        click.echo(line)


def _cells(row: Row) -> tuple[str, ...]:
    was, is_ = row.before, row.after
    return (
        row.layer, row.of, f"{was.folders:,}", f"{was.files:,}", f"→ {is_.files:,}", _size(was.bytes), f"→ {_size(is_.bytes)}", f"{was.rows:,}",
        f"→ {is_.rows:,}",
    )  # fmt: skip


def _below(report: Report) -> Iterator[str]:
    from beam_pipelines.arrow.ranges import show_instant

    would = "would be " * report.dry_run
    for one in report.deleted:
        what = f"{one.files:,} records of runs" if one.of == "runs" else f"{one.rows:,} rows in {one.files:,} files"
        whose = f"{one.layer}, {one.of}" + ("" if one.stream or one.of in _AGE else " of batch runs") if one.layer != one.of else one.layer
        yield f"{would}deleted: {whose}: {what}, {_size(one.bytes)}, all {_AGE.get(one.of, 'arrived')} before {show_instant(-(-one.until // 1_000_000) * 1_000_000)}"
    for kept in report.kept:
        yield f"kept, though older than retention says: {kept.layer}: {kept.rows:,} rows: {kept.why}"
    yield from report.notes
    swept, waiting = sum(row.swept for row in report.layers), sum(row.after.waiting for row in report.layers)
    if swept:
        yield f"{would}deleted: {swept:,} files that dead processes had left unfinished"
    if waiting:
        yield f"{waiting:,} files that were merged are there for readers who have just listed them; the stream, or a call in a minute, deletes them"


def _size(count: int) -> str:
    for unit, least in (("GB", 1_000_000_000), ("MB", 1_000_000), ("kB", 1_000)):
        if count >= least:
            return f"{count / least:.1f} {unit}"
    return f"{count} B"
