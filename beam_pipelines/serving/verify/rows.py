"""Why a row is in one layer alone, or differs. Each cause needs evidence; the first that has it is the one.

`d` is a difference: `b_…` is the batch's row, `s_…` the stream's. Where the batch read the archive a row has one identity in both layers; where it read
files, only key and event time tell that two records are of one thing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from beam_pipelines.arrow.engine import literal, quote
from beam_pipelines.arrow.ranges import show_instant
from beam_pipelines.serving.stale_files import ON_THE_WAY
from beam_pipelines.serving.verify.evidence import Case, batch_letters, reached, stream_letters
from beam_pipelines.serving.verify.findings import (
    CODE,
    CONTRACT,
    DEAD_LETTER,
    DELETED,
    DUPLICATE,
    LOOKUP,
    NOT_READ,
    OPEN,
    STALE,
    SUPERSEDED,
)
from beam_pipelines.serving.verify.messages import keys_of_messages
from beam_pipelines.sinks.deletions import deleted_before
from beam_pipelines.sinks.speed_views import AT_AGGREGATE, scan
from beam_pipelines.spec.horizon import EVERYTHING
from beam_pipelines.spec.models import PipelineSpec

_ROW = f"stage <> '{AT_AGGREGATE}'"
_ONE_IDENTITY = "coalesce(b_source = s_source AND b_position = s_position, FALSE)"


def explain_rows(case: Case, places: dict[str, str]) -> None:
    """Gives the differences of an output of rows their causes, as far as there is evidence."""
    for cause, sql in _looked_for(case, places):
        case.blame(cause, sql)
        if not case.open():
            return


def _looked_for(case: Case, places: dict[str, str]) -> Iterator[tuple[str, str | None]]:
    d = case.undecided
    yield OPEN, _open(case)
    yield DEAD_LETTER, _letter_of(case, "stream", "b", "letters.speed AND kind = 'only batch'")
    yield DEAD_LETTER, _letter_of(case, "batch", "s", "letters.batch AND kind = 'only speed'")
    for kind, letters in _letters(case, places):
        yield DEAD_LETTER, _same_key_and_time(case, kind, letters)
    if case.doors is not None:
        told = f"JOIN {case.doors} AS told ON told.source = b_source AND told.position = b_position"
        gone = f"kind <> 'only speed' AND NOT {_ONE_IDENTITY}"
        yield DUPLICATE, f"SELECT id, 'the stream told it a duplicate' AS detail FROM {d} {told} WHERE {gone}"
    yield DUPLICATE, _better_in_batch(case)
    yield SUPERSEDED, _other_identity(case)
    yield SUPERSEDED, _pairs(case)
    yield SUPERSEDED, _other_copy(case)
    yield STALE, _stale(case)
    yield DELETED, _deleted(case)
    yield NOT_READ, _gone_from_archive(case)
    yield from ((NOT_READ, sql) for sql in _by_messages(case))
    yield from ((LOOKUP, sql) for sql in _lookups(case))
    yield (
        CONTRACT,
        (
            f"SELECT id, 'batch ' || coalesce(b_contract, contract) || ', stream ' || s_contract AS detail FROM {d} WHERE coalesce(b_contract, contract) <> s_contract"
            f" UNION ALL SELECT id, 'batch ' || contract || ', another than any start of the stream' FROM {d} WHERE kind = 'only batch' AND contract IS NOT NULL"
            " AND EXISTS (FROM starts WHERE starts.contract IS NOT NULL) AND contract NOT IN (SELECT contract FROM starts WHERE starts.contract IS NOT NULL)"
        ),
    )
    yield CODE, code_sql(d, "starts.run_id = d.s_run")


def code_sql(differences: str, of_start: str) -> str:
    """Where the batch's run and the stream's start (`of_start`: the start of a difference `d`) had other versions of the pipeline or the program;
    of what the stream does not have, where no start had the batch's."""
    shown = "'batch ' || d.version || ' (beam-pipelines ' || d.package || ')'"
    return (
        f"SELECT id, {shown} || ', stream ' || starts.version || ' (beam-pipelines ' || starts.package || ')' AS detail FROM {differences} AS d JOIN starts ON {of_start} "
        "WHERE d.version <> starts.version OR d.package <> starts.package"
        f" UNION ALL SELECT id, {shown} || ', another than any start of the stream' FROM {differences} AS d WHERE kind = 'only batch' AND d.version IS NOT NULL "
        "AND EXISTS (FROM starts WHERE starts.version IS NOT NULL) AND NOT EXISTS (FROM starts WHERE starts.version = d.version AND starts.package = d.package)"
    )


def _open(case: Case) -> str | None:
    """The stream has the message, and is not through with it."""
    last = reached(case.state)
    if last is None or last.ended:
        return None
    watermark = "TRUE" if last.watermark_micros is None else f"b_arrival >= {last.watermark_micros}"
    return f"SELECT id, 'the stream is not through with it' AS detail FROM {case.undecided} WHERE kind = 'only batch' AND archive AND {watermark}"


def _letter_of(case: Case, layer: str, side: str, where: str) -> str:
    """A letter of the same message."""
    joined = f"{case.undecided} JOIN letters ON letters.source = {side}_source AND letters.position = {side}_position"
    return f"SELECT id, '{layer} ' || stage || ':' || reason AS detail FROM {joined} WHERE {where} AND {_ROW}"


def _letters(case: Case, places: dict[str, str]) -> Iterator[tuple[str, str]]:
    yield from (("only batch", sql) for sql in stream_letters(case.state, case.stream))
    yield from (("only speed", f"({sql})") for sql in batch_letters(case.state, places))


def _same_key_and_time(case: Case, kind: str, letters: str) -> str | None:
    """A letter of another record, of the same event time and with every value of the key in its bytes."""
    key = key_of(case)
    if not key:
        return None
    has = " AND ".join(f"regexp_matches(l.raw, '(^|\\W)' || regexp_escape({_either(case, n)}::VARCHAR) || '(\\W|$)')" for n in key)
    layer = "stream" if kind == "only batch" else "batch"
    found = f"SELECT stage, reason, epoch_us(event_time) AS moment, raw::VARCHAR AS raw FROM {letters} WHERE {_ROW} AND raw IS NOT NULL AND NOT ends_with(raw_format, '+sealed')"
    return f"SELECT id, '{layer} ' || stage || ':' || reason AS detail FROM {case.undecided} AS d JOIN ({found}) AS l ON l.moment = d.moment WHERE kind = '{kind}' AND {has}"


def key_of(case: Case) -> tuple[str, ...]:
    """The columns of the key, where both layers have all of them."""
    spec = case.spec
    key = (spec.deduplicate.key if spec.deduplicate else None) or spec.contract.key
    known = [names for names in case.layers.there.values() if names]
    return key if set(key) <= set(case.layers.match) and all(set(key) <= names for names in known) else ()


def _either(case: Case, column: str) -> str:
    place = case.layers.places[column]
    return f"coalesce(d.b_{place}, d.s_{place})"


def _rule(case: Case) -> tuple[tuple[str, ...], int] | None:
    """Key and reach (microseconds) of the duplicate rule, where copies can be looked for."""
    rule, key = case.spec.deduplicate, key_of(case)
    if rule is None or not key or case.layers.time is None:
        return None
    return key, EVERYTHING if rule.within is None else rule.within


def _near(case: Case, within: int) -> str:
    """A condition on `t` of a scan: near any difference without a cause."""
    low, high = case.connection.execute(f"SELECT min(moment), max(moment) FROM {case.table} WHERE cause IS NULL").fetchall()[0]
    return "TRUE" if low is None or within >= EVERYTHING else f"t BETWEEN {low - within} AND {high + within}"


def _copies(case: Case, source: str, key: tuple[str, ...], within: int) -> str:
    """Rows of `source` with the key of a difference `d` and an event time near its own, as `c`: to be joined to the differences."""
    names = ", ".join(f"{quote(n)}::{case.layers.columns[n]} AS k{i}" for i, n in enumerate(key))
    rows = f"SELECT _source::VARCHAR AS source, _position AS position, epoch_us({quote(str(case.layers.time))}) AS t, {names} FROM {source}"
    same = " AND ".join(f"c.k{i} = {_either(case, n)}" for i, n in enumerate(key))
    return f"(SELECT * FROM ({rows}) WHERE {_near(case, within)}) AS c ON {same} AND abs(c.t - d.moment) <= {within}"


def _better_in_batch(case: Case) -> str | None:
    """The stream kept a row of which the batch has another copy, which both layers have."""
    rule = _rule(case)
    if rule is None or not {"_source", "_position"} <= case.layers.there["batch"]:
        return None
    copies = _copies(case, f"batch_{case.layers.number}", *rule)
    key = " AND ".join(f"x.b_{case.layers.places[n]} = c.k{i}" for i, n in enumerate(rule[0]))
    alone = f"EXISTS (FROM {case.table} AS x WHERE x.kind <> 'only speed' AND x.moment = c.t AND {key})"
    return f"SELECT id, 'a better copy is in the batch' AS detail FROM {case.undecided} AS d JOIN {copies} WHERE kind = 'only speed' AND NOT {alone}"


def _other_identity(case: Case) -> str | None:
    if _rule(case) is None:
        return None
    return (
        f"SELECT id, 'batch: message ' || b_position || ', stream: message ' || s_position AS detail FROM {case.undecided} "
        f"WHERE kind = 'other values' AND archive AND b_position IS NOT NULL AND NOT {_ONE_IDENTITY}"
    )


def _pairs(case: Case) -> str | None:
    """One copy is in the batch alone, another of the same key in the speed layer alone."""
    rule = _rule(case)
    if rule is None:
        return None
    key, within = rule
    places = [case.layers.places[n] for n in key]
    same = " AND ".join(
        [
            *(f"b.b_{p} = s.s_{p}" for p in places),
            f"abs(b.moment - s.moment) <= {within}",
            "NOT coalesce(b.b_source = s.s_source AND b.b_position = s.s_position, FALSE)",
        ]
    )
    joined = f"(SELECT * FROM {case.table} WHERE kind = 'only batch') AS b JOIN (SELECT * FROM {case.table} WHERE kind = 'only speed') AS s ON {same}"
    said = "'another copy of its key is in the {} alone' AS detail"
    return f"SELECT b.id AS id, {said.format('speed layer')} FROM {joined} UNION ALL SELECT s.id, {said.format('batch')} FROM {joined}"


def _other_copy(case: Case) -> str | None:
    """The stream has stored another copy of the same key, and one of the two won."""
    rule = _rule(case)
    if rule is None or case.files is None:
        return None
    copies = _copies(case, case.files, *rule)
    mine = "(c.source, c.position) IS DISTINCT FROM {}"
    other = f"{mine.format('(d.b_source, d.b_position)')} AND {mine.format('(d.s_source, d.s_position)')}"
    return f"SELECT id, 'the stream has another copy of its key' AS detail FROM {case.undecided} AS d JOIN {copies} WHERE NOT {_ONE_IDENTITY} AND {other}"


def _stale(case: Case) -> str | None:
    """The stream stored the row after the batch's run had listed its input, or so shortly before that its message may not have been there."""
    if case.files is None:
        return None
    wanted = f"SELECT s_source AS _source, s_position AS _position FROM {case.undecided}"
    found = f"{case.files} SEMI JOIN ({wanted}) USING (_source, _position)"
    stored = f"(SELECT _source::VARCHAR AS source, _position AS position, min(epoch_us(_stored_at)) AS stored FROM {found} GROUP BY ALL)"
    return (
        f"SELECT id, 'stored ' || strftime(make_timestamp(stored), '%Y-%m-%dT%H:%M:%SZ') || ', after run ' || run_id || ' began' AS detail FROM {case.undecided} "
        f"JOIN {stored} AS at_files ON at_files.source = s_source AND at_files.position = s_position WHERE as_of > 0 AND NOT {_ONE_IDENTITY} "
        f"AND stored >= CASE WHEN archive THEN as_of - {ON_THE_WAY} ELSE as_of END"
    )


def _deleted(case: Case) -> str | None:
    """Retention has deleted rows of that age from the speed layer; of a batch over files nothing says when its rows reached the stream, so their
    event time counts."""
    before = deleted_before(case.state, case.layers.output.name, "rows")
    at = "CASE WHEN archive THEN b_arrival ELSE moment END"
    return None if before is None else deleted_sql(case.undecided, f"{at} < {before}", f"rows that arrived before {show_instant(before)}")


def deleted_sql(differences: str, old: str, which: str) -> str:
    """What the batch alone has, and is `old`."""
    return f"SELECT id, {literal(f'of the speed layer {which} have been deleted')} AS detail FROM {differences} AS d WHERE kind = 'only batch' AND {old}"


def _gone_from_archive(case: Case) -> str | None:
    """The batch read an archive in which the message is not (any more)."""
    there = [found for folder in case.stream.archive if (found := scan(folder)) is not None]
    kept = " UNION ALL ".join(f"SELECT _source::VARCHAR AS s_source, _position AS s_position FROM {found}" for found in there)
    absent = f"ANTI JOIN ({kept}) USING (s_source, s_position)" if there else ""
    return f"SELECT id, 'its message is not in the archive that the batch read' AS detail FROM (SELECT * FROM {case.undecided} WHERE kind = 'only speed' AND archive) {absent}"


def _by_messages(case: Case) -> Iterator[str]:
    """A batch over files: which keys messages of the archive have, where that can be read out of them."""
    key = key_of(case)
    keys = keys_of_messages(case.spec, case.state, {n: case.layers.columns[n] for n in key}) if key else None
    if keys is None:
        return
    same = " AND ".join(f"m.k{i} = {_either(case, n)}" for i, n in enumerate(key))
    yield (
        f"SELECT id, 'no message of the archive has its key' AS detail FROM (SELECT * FROM {case.undecided} WHERE kind = 'only batch' AND NOT archive) AS d "
        f"ANTI JOIN ({keys}) AS m ON {same}"
    )
    yield (
        f"SELECT id, 'the stream read it; batch run ' || run_id || ' read files' AS detail FROM {case.undecided} AS d JOIN ({keys}) AS m "
        f"ON m.source = s_source AND m.position = s_position AND {same} WHERE kind = 'only speed' AND NOT archive"
    )


def _lookups(case: Case) -> Iterator[str]:
    """Only columns that come from lookups differ: of a lookup that had another version, or may have had one. A version is on record of when the run
    or start began; one that is refreshed may have been replaced since."""
    taken = {c: names for c, names in lookups_of_columns(case.spec).items() if all(c in there for there in case.layers.there.values())}
    if not taken:
        return
    d = f"(SELECT * FROM {case.undecided} WHERE kind = 'other values' AND len(columns) > 0 AND list_has_all([{_listed(taken)}], columns)) AS d"
    maybe = []
    for name in sorted(set().union(*taken.values())):
        of = f"list_has_any([{_listed(c for c, names in taken.items() if name in names)}], d.columns)"
        both = f"b.run_id = d.run_id AND b.name = {literal(name)} AND s.run_id = d.s_run AND s.name = b.name"
        said = f"{literal(f'lookup {name}: batch ')} || b.version || ', stream ' || s.version AS detail"
        yield f"SELECT id, {said} FROM {d}, lookups AS b, lookups AS s WHERE {of} AND {both} AND b.version <> s.version"
        same = f"EXISTS (FROM lookups AS b, lookups AS s WHERE {both} AND b.version = s.version)"
        maybe.append(of if case.spec.lookups[name].refresh is not None else f"({of} AND NOT {same})")
    yield f"SELECT id, 'only columns that come from lookups differ' AS detail FROM {d} WHERE {' OR '.join(maybe)}"


def _listed(columns: Iterable[str]) -> str:
    return ", ".join(map(literal, sorted(columns)))


def lookups_of_columns(spec: PipelineSpec) -> dict[str, frozenset[str]]:
    """Columns of the rows that come from lookups, or are computed from one that does, and from which. What an `apply` function makes is not seen."""
    found: dict[str, frozenset[str]] = {}
    for step in spec.transform:
        found |= dict.fromkeys(step.lookup.take, frozenset({step.lookup.from_})) if step.lookup else {}
        for name, sql in (step.set or {}).items():
            of = [names for c, names in found.items() if re.search(rf"(?<!\w){re.escape(c)}(?!\w)", sql, re.IGNORECASE)]
            found |= {name: frozenset().union(*of)} if of else {}
        renamed = {old: new for new, old in (step.rename or {}).items()}
        found = {renamed.get(name, name): names for name, names in found.items()}
    return found
