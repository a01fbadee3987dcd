"""Why a window's group is in one layer alone, or has other measures: what is known of the pane, of letters, of the rows that are in it.

pane early or drained, window not closed          open
a letter LATE of one layer, in the window         late                   ─┐
rows of the window that differ themselves         their cause              ├ of the same group, where the rows have its columns
a duplicate, told when the window had closed      duplicate                │
a row that came then, or after the batch's run    stale                  ─┘
panes of that age have been deleted               deleted by retention
"""

from __future__ import annotations

from collections.abc import Iterator

from beam_pipelines.arrow.engine import literal, quote
from beam_pipelines.arrow.ranges import show_instant
from beam_pipelines.serving.verify.evidence import Case, is_late, reached
from beam_pipelines.serving.verify.findings import CAUSES, CODE, CONTRACT, DEAD_LETTER, DELETED, DUPLICATE, LATE, OPEN, STALE, UNEXPLAINED
from beam_pipelines.serving.verify.rows import code_sql, deleted_sql
from beam_pipelines.sinks.deletions import deleted_before
from beam_pipelines.sinks.speed_views import AT_AGGREGATE

_START, _END = "_window_start", "_window_end"


def explain_windows(case: Case, rows: Case | None) -> None:
    """Gives the differences of an aggregate their causes; `rows` are those of the rows it is made of, explained before."""
    for cause, sql in _looked_for(case, rows):
        case.blame(cause, sql)
        if not case.open():
            return


def _looked_for(case: Case, rows: Case | None) -> Iterator[tuple[str, str | None]]:
    d = case.undecided
    yield OPEN, f"SELECT id, 'the pane is ' || s_pane AS detail FROM {d} WHERE s_pane IN ('early', 'drained')"
    yield OPEN, _not_closed(case)
    yield LATE, _letters(case, rows, is_late("l."), "'its rows came too late in one layer'")
    yield DEAD_LETTER, _letters(case, rows, f"l.stage = '{AT_AGGREGATE}' AND l.reason <> 'LATE'", "'aggregate:' || any_value(l.reason)")
    yield from _inherited(case, rows)
    if rows is not None and rows.files is not None:
        yield DUPLICATE, _told_too_late(case, rows)
        yield STALE, _came_too_late(case, rows)
        yield STALE, _after_the_run(case, rows)
    yield DELETED, _deleted(case)
    known = "EXISTS (FROM starts WHERE starts.contract IS NOT NULL)"
    yield (
        CONTRACT,
        (
            f"SELECT id, 'batch ' || d.contract || ', stream ' || starts.contract AS detail FROM {d} AS d JOIN starts ON start_epoch = s_epoch WHERE d.contract <> starts.contract"
            f" UNION ALL SELECT id, 'batch ' || contract || ', another than any start of the stream' FROM {d} WHERE kind = 'only batch' AND {known} "
            "AND contract NOT IN (SELECT contract FROM starts WHERE starts.contract IS NOT NULL)"
        ),
    )
    yield CODE, code_sql(d, "start_epoch = d.s_epoch")


def _window(case: Case, end: str) -> str:
    place = case.layers.places[end]
    return f"epoch_us(coalesce(d.b_{place}, d.s_{place}))"


def _not_closed(case: Case) -> str | None:
    last = reached(case.state)
    if last is None or last.ended:
        return None
    close = f"{_window(case, _END)} + {case.layers.output.open_micros}"
    waits = "TRUE" if last.watermark_micros is None else f"{close} > {last.watermark_micros}"
    return f"SELECT id, 'the window is not closed yet' AS detail FROM {case.undecided} AS d WHERE {waits}"


def _deleted(case: Case) -> str | None:
    """Retention has deleted panes of windows that ended then. That rows have been deleted says nothing of a pane: it was made of them before."""
    before = deleted_before(case.state, case.layers.output.name, "panes")
    which = f"panes of windows that ended before {show_instant(before or 0)}"
    return None if before is None else deleted_sql(case.undecided, f"{_window(case, _END)} < {before}", which)


def _inside(case: Case, at: str) -> str:
    """A condition that a row of event time `moment` has a say in the window of `d`; a session also in what follows it within `gap`."""
    windowing = case.spec.aggregates[case.layers.output.of].windowing
    gap = (windowing.gap or 0) if windowing is not None and windowing.type == "sessions" else 0
    return f"{at} >= {_window(case, _START)} - {gap} AND {at} < {_window(case, _END)}"


def _groups(case: Case, rows: Case | None) -> tuple[str, ...]:
    """The columns of the aggregate's groups that the rows have too, as they are."""
    groups = [n for n in case.layers.output.group_by if n in case.layers.match]
    return tuple(n for n in groups if rows is not None and n in rows.layers.columns)


def _same_group(case: Case, groups: tuple[str, ...], alias: str) -> str:
    pairs = [(f"{alias}.g{i}", case.layers.places[n]) for i, n in enumerate(groups)]
    return " AND ".join(["TRUE", *(f"{mine} IS NOT DISTINCT FROM coalesce(d.b_{place}, d.s_{place})" for mine, place in pairs)])


def _members(case: Case, rows: Case, source: str, groups: tuple[str, ...], *more: str) -> str:
    """Rows of a scan or view: source, position, t (what windows are cut by), g0, g1, …, and `more`."""
    time = case.spec.aggregates[case.layers.output.of].time or case.spec.contract.event_time
    listed = ", ".join(
        [f"epoch_us({quote(str(time))}) AS t", *(f"{quote(n)}::{rows.layers.columns[n]} AS g{i}" for i, n in enumerate(groups)), *more]
    )
    return f"SELECT _source::VARCHAR AS source, _position AS position, {listed} FROM {source}"


def _near(case: Case) -> str:
    """A condition on `t`: near any window without a cause."""
    start, end = (f"epoch_us(coalesce(b_{p}, s_{p}))" for p in (case.layers.places[_START], case.layers.places[_END]))
    low, high = case.connection.execute(f"SELECT min({start}), max({end}) FROM {case.table} WHERE cause IS NULL").fetchall()[0]
    windowing = case.spec.aggregates[case.layers.output.of].windowing
    gap = (windowing.gap or 0) if windowing is not None else 0
    return "FALSE" if low is None else f"t >= {low - gap} AND t < {high}"


def _letters(case: Case, rows: Case | None, condition: str, said: str) -> str:
    """Letters of this aggregate that one layer alone has, of rows in the window; of the group, where the row is stored and says it."""
    name = literal(case.layers.output.of)
    mine = f"{condition} AND l.batch <> l.speed AND (l.name = {name} OR starts_with(l.name, {name} || '.'))"
    groups = _groups(case, rows)
    found, group = f"SELECT l.* FROM letters AS l WHERE {mine}", "TRUE"
    if rows is not None and groups:
        stored = " UNION ALL ".join(_members(case, rows, source, groups) for source in _stored(rows))
        listed = ", ".join(f"g{i}" for i in range(len(groups)))
        of_letters = f"SELECT source, position, TRUE AS known, {listed} FROM ({stored}) SEMI JOIN ({found}) USING (source, position)"
        found = f"SELECT * FROM ({found}) LEFT JOIN ({of_letters}) USING (source, position)" if stored else found
        group = f"(l.known IS NULL OR {_same_group(case, groups, 'l')})" if stored else "TRUE"
    return (
        f"SELECT id, {said} AS detail FROM {case.undecided} AS d JOIN ({found}) AS l ON {_inside(case, 'l.moment')} AND {group} GROUP BY id"
    )


def _stored(rows: Case) -> list[str]:
    """Where rows with identities are stored, in both layers."""
    batch = [f"batch_{rows.layers.number}"] if {"_source", "_position"} <= rows.layers.there["batch"] else []
    return [*batch, *filter(None, [rows.files])]


def _inherited(case: Case, rows: Case | None) -> Iterator[tuple[str, str]]:
    """Causes of rows of the window and group that differ themselves, unless one of these has none."""
    time = case.spec.aggregates[case.layers.output.of].time or case.spec.contract.event_time
    groups = _groups(case, rows)
    if rows is None or time is None or time not in rows.layers.columns or len(groups) < len(case.layers.output.group_by):
        return
    places = rows.layers.places

    def side(letter: str) -> str:
        columns = ", ".join([f"epoch_us({letter}_{places[time]}) AS t", *(f"{letter}_{places[n]} AS g{i}" for i, n in enumerate(groups))])
        return f"SELECT id AS row_id, cause AS row_cause, {columns} FROM {rows.table} WHERE kind <> '{'only speed' if letter == 'b' else 'only batch'}' AND cause IS DISTINCT FROM '{DELETED}'"

    joined = f"{case.undecided} AS d JOIN (({side('b')}) UNION ALL ({side('s')})) AS r ON {_inside(case, 'r.t')} AND {_same_group(case, groups, 'r')}"
    counted = f"SELECT id, row_cause, count(DISTINCT row_id) AS n FROM {joined} GROUP BY id, row_cause"
    case.connection.execute(f"CREATE OR REPLACE TEMP TABLE inherited AS {counted}")
    whole = f"SELECT * FROM inherited ANTI JOIN (SELECT id FROM inherited WHERE row_cause = '{UNEXPLAINED}') AS not_explained USING (id)"
    said = "n || CASE n WHEN 1 THEN ' row of it is ' ELSE ' rows of it are ' END || row_cause AS detail"
    for cause in CAUSES[:-1]:
        yield cause, f"SELECT id, {said} FROM ({whole}) WHERE row_cause = {literal(cause)}"


def _closing(case: Case, rows: Case) -> str:
    """When each window without a cause may have closed at the earliest (`closed`, machine clock): a row that arrived after its end had been stored."""
    close = f"{_window(case, _END)} + {case.layers.output.open_micros}"
    windows = f"SELECT DISTINCT {close} AS close FROM {case.undecided} AS d"
    seen = f"SELECT epoch_us(_arrival_time) // 1000000 AS second, min(epoch_us(_stored_at)) AS stored FROM {rows.files} WHERE _arrival_time IS NOT NULL GROUP BY ALL"
    ahead = f"SELECT second, min(stored) OVER (ORDER BY second DESC) AS stored FROM ({seen})"
    return f"SELECT close, stored AS closed FROM ({windows}) AS w ASOF JOIN ({ahead}) AS a ON w.close <= a.second * 1000000"


def _told_too_late(case: Case, rows: Case) -> str | None:
    """A row was told a duplicate when its window had closed: the pane counts it still."""
    if rows.doors is None:
        return None
    groups = _groups(case, rows)
    stored = f"SELECT DISTINCT * FROM ({_members(case, rows, str(rows.files), groups)}) WHERE {_near(case)}"
    members = f"SELECT m.*, told.stored FROM ({stored}) AS m JOIN {rows.doors} AS told USING (source, position)"
    return _after_close(case, rows, members, groups, "'a duplicate in it was told when the window had closed'")


def _came_too_late(case: Case, rows: Case) -> str:
    """A row came in time by its own arrival, but behind the watermark."""
    groups = _groups(case, rows)
    return _after_close(case, rows, _kept(case, rows, groups), groups, "'a row of it came when the window had closed'")


def _after_the_run(case: Case, rows: Case) -> str:
    """A row was stored after the batch's run had begun; those of the time compared are known as differences already."""
    groups = _groups(case, rows)
    compared = " OR ".join(f"m.t >= {start} AND m.t < {end}" for start, end in rows.layers.pieces) or "FALSE"
    return (
        f"SELECT id, 'a row of it was stored after run ' || any_value(d.run_id) || ' began' AS detail FROM {case.undecided} AS d "
        f"JOIN ({_kept(case, rows, groups)}) AS m ON {_inside(case, 'm.t')} AND {_same_group(case, groups, 'm')} "
        f"WHERE d.as_of > 0 AND m.stored >= d.as_of AND NOT ({compared}) GROUP BY id"
    )


def _kept(case: Case, rows: Case, groups: tuple[str, ...]) -> str:
    """Rows of the stream that are no duplicates, and when each was first stored."""
    scanned = _members(case, rows, str(rows.files), groups, "epoch_us(_stored_at) AS stored_at")
    listed = ", ".join(["source", "position", "t", *(f"g{i}" for i in range(len(groups)))])
    told = f"ANTI JOIN {rows.doors} AS told USING (source, position)" if rows.doors is not None else ""
    return f"SELECT {listed}, min(stored_at) AS stored FROM ({scanned}) {told} WHERE {_near(case)} GROUP BY ALL"


def _after_close(case: Case, rows: Case, members: str, groups: tuple[str, ...], said: str) -> str:
    close = f"{_window(case, _END)} + {case.layers.output.open_micros}"
    return (
        f"SELECT id, {said} AS detail FROM {case.undecided} AS d JOIN ({members}) AS m ON {_inside(case, 'm.t')} AND {_same_group(case, groups, 'm')} "
        f"JOIN ({_closing(case, rows)}) AS c ON c.close = {close} WHERE m.stored > c.closed"
    )
