"""The serving view in BigQuery's SQL: external tables over the lake's Parquet, and views over them with the same meaning as `views`.

    rows_batch_files, rows_speed_files, doors_files, resolutions_files     external tables with hive partitions
    rows_batch, rows_speed, rows, …                                        views

Conditions on partition columns reach the files in BigQuery too. A batch folder at rest holds exactly its output, so no list of files is needed: the script must
be run again after commits only because the ranges of the batch are in it. While a commit moves files, BigQuery sees what lies there at that moment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from beam_pipelines.arrow.doors import FILTERED
from beam_pipelines.arrow.ranges import partition_range, partition_value, union
from beam_pipelines.errors import RunError, SpecError
from beam_pipelines.places import holds
from beam_pipelines.sinks.epochs import doors_folder
from beam_pipelines.sinks.manifest import Snapshot, snapshots
from beam_pipelines.sinks.outputs import SpeedOutput, read_columns, read_outputs
from beam_pipelines.sinks.resolutions import REPLAYED
from beam_pipelines.sinks.resolutions import folder as resolutions_folder
from beam_pipelines.sinks.run import TOMBSTONES
from beam_pipelines.sinks.speed_views import AT_AGGREGATE, AT_SINK, KEPT, LETTER, doors_scan, scan, shown_anew
from beam_pipelines.spec.sinks import LETTERS, ROWS

_TYPES = {"DATE": "DATE", "VARCHAR": "STRING", "BOOLEAN": "STRING"}  # of partition columns; every other is a number


def bigquery_script(state: str, places: Mapping[str, str] | None, dataset: str, *, folder: str = "", lake_at: str | None = None) -> str:
    """Statements that make all tables and views in `dataset` (project.dataset). Paths below `folder` are those below `lake_at` in Cloud Storage.

    A table over no file is refused there, so what has none is left out, with a comment that says so. Raises RunError where nothing has been stored yet, or
    nothing that BigQuery reads, SpecError where a path is neither in Cloud Storage nor below `folder`, or where BigQuery cannot take a name.
    """
    if dataset.count(".") != 1 or set("`\\\n\r") & set(dataset):
        raise SpecError(f"serve: --bigquery {dataset}: expected PROJECT.DATASET.")
    if lake_at is not None and not lake_at.startswith("gs://"):
        raise SpecError(f"serve: --lake-at {lake_at}: expected gs://BUCKET or gs://BUCKET/PREFIX.")
    batch, stream = snapshots(state, places), read_outputs(state)
    speed = {} if stream is None else {output.name: output for output in stream.outputs}
    if not batch and not speed:
        raise RunError("serve: nothing has been stored yet.", hint="Run the pipeline first; a run that fails commits nothing.")
    script = _Script(dataset, folder, lake_at)
    script.doors = bool(speed) and doors_scan(state) is not None
    if script.doors:
        script.table("doors_files", doors_folder(state), {})
    left_out = {n for n, snapshot in batch.items() if snapshot.format != "parquet"}
    letters = [output for output in speed.values() if output.of == LETTERS and output.name not in left_out]
    there = [output for output in letters if scan(output.folder) is not None]
    script.letters = [_quoted(o.table) if o.table else script.named(f"{o.name}_speed_files") for o in there]
    first = [*(n for n in batch if n == TOMBSTONES), *(o.name for o in there)]  # views of others look into them
    rows = [output for output in speed.values() if output.of == ROWS and output.name not in left_out and scan(output.folder) is not None]
    script.rows = [_quoted(o.table) if o.table else script.named(f"{o.name}_speed_files") for o in rows]
    _find_resolutions(script, state)
    for name in dict.fromkeys((*first, *batch, *speed)):
        for statement in _output(script, state, name, batch, speed.get(name)):
            script.add(statement)
    for statement in script.last:
        script.add(statement)
    if not any(statement.startswith("CREATE OR REPLACE VIEW") for statement in script.statements):
        said = [statement.removeprefix("-- ") for statement in script.statements if statement.startswith("--")]
        raise RunError(f"serve: --bigquery: there is no table to show: {'; '.join(said)}.", hint="It needs outputs with rows, as Parquet.")
    return "\n\n".join(script.statements) + "\n"


class _Script:
    def __init__(self, dataset: str, folder: str, lake_at: str | None) -> None:
        self.dataset, self.folder, self.lake_at = dataset, folder.rstrip("/"), lake_at
        self.statements: list[str] = []
        self.doors = False
        self.letters: list[str] = []
        self.rows: list[str] = []
        self.resolutions = ""
        self.last: list[str] = []  # views that look into what others make

    def add(self, statement: str) -> None:
        self.statements.append(statement if statement.startswith("--") else statement + ";")

    def named(self, name: str) -> str:
        return _quoted(f"{self.dataset}.{name}")

    def table(self, name: str, folder: str, partitions: Mapping[str, str]) -> None:
        """An external table over all Parquet files below a folder."""
        uri = self._uri(folder)
        columns = ", ".join(f"{_quoted(n)} {_TYPES.get(kind, 'INT64')}" for n, kind in partitions.items())
        hive = f"\nWITH PARTITION COLUMNS ({columns})" if columns else ""
        prefix = f", hive_partition_uri_prefix = {_text(uri)}" if columns else ""
        self.add(
            f"CREATE OR REPLACE EXTERNAL TABLE {self.named(name)}{hive}\nOPTIONS (format = 'PARQUET', enable_list_inference = TRUE, uris = [{_text(f'{uri}/*.parquet')}]{prefix})"
        )

    def view(self, name: str, sql: str) -> str:
        return f"CREATE OR REPLACE VIEW {self.named(name)} AS\n{sql}"

    def _uri(self, path: str) -> str:
        if path.startswith("gs://"):
            return path.rstrip("/")
        if self.lake_at and self.folder and (path + "/").startswith(self.folder + "/"):
            return self.lake_at.rstrip("/") + path[len(self.folder) :].rstrip("/")
        if self.lake_at:
            raise SpecError(
                f"serve: --bigquery: {path} is neither in Cloud Storage nor below the spec's folder {self.folder}, which --lake-at says is {self.lake_at}.",
                hint="Let the sinks' paths, and the spec's `state`, be gs:// or below the spec's folder.",
            )
        raise SpecError(
            f"serve: --bigquery: {path} is not in Cloud Storage.",
            hint="Say with --lake-at gs://BUCKET/PREFIX where the spec's folder lies there.",
        )


def _output(script: _Script, state: str, name: str, batch: Mapping[str, Snapshot], output: SpeedOutput | None) -> Iterator[str]:
    snapshot = batch.get(name)
    if snapshot is not None and snapshot.format != "parquet":
        yield f"-- {name}: its batch writes {snapshot.format}, not Parquet, and is left out"
        return
    layers = []
    buried = "" if snapshot is None else _buried(script, snapshot, batch)
    if snapshot is not None and snapshot.files:  # an external table over no file is an error
        hidden = _superseded(snapshot) if snapshot.of == LETTERS else _where(buried)
        yield script.view(f"{name}_batch", f"SELECT * FROM {_batch_files(script, name, snapshot)} AS f{hidden}")
        layers.append(f"SELECT * FROM {script.named(f'{name}_batch')}")
    if output is not None and scan(output.folder) is not None:
        files = _speed_files(script, name, output)
        yield script.view(f"{name}_speed", _speed(script, state, output, files))
        if output.of == LETTERS and snapshot is not None:
            layers.append(_speed(script, state, output, files, unless=_superseded_in_stream(snapshot, batch)))
        elif snapshot is None:
            layers.append(f"SELECT * FROM {script.named(f'{name}_speed')}")
        elif snapshot.clock is not None:
            unless = _answered(snapshot, {} if output.table else read_columns(output.folder))
            layers.append(
                f"SELECT * FROM {script.named(f'{name}_speed')} AS f{_where(f'({unless}) IS NOT TRUE', buried if output.provenance else '')}"
            )
    elif output is not None:
        yield f"-- {name}_speed: the stream has stored nothing there yet"
    if not layers:
        yield f"-- {name}: it has no row yet"
    else:
        merged = "\nFULL OUTER UNION ALL BY NAME\n".join(layers)
        if LETTERS in (snapshot and snapshot.of, output and output.of):
            script.last.append(script.view(name, _open(script, merged)))
        else:
            yield script.view(name, merged)


def _find_resolutions(script: _Script, state: str) -> None:
    """A table of what became of letters, where the state is where BigQuery sees it."""
    where = resolutions_folder(state)
    if not holds(where, ".parquet"):
        return
    try:
        script.table("resolutions_files", where, {})
    except SpecError:
        script.add("-- the pipeline's state is not in Cloud Storage: dead letters that were replayed or discarded are not left out")
        return
    script.resolutions = script.named("resolutions_files")


def _open(script: _Script, letters: str) -> str:
    """The `letters` that nothing has become of yet, as `resolutions.open_sql` has them."""
    joined, where = "", []
    if script.resolutions:
        same = " AND ".join(f"{_known('done', c, absent)} = {_known('letters', c, absent)}" for c, absent in _IDENTITY.items())
        kept = "done.raw IS NULL OR letters.raw IS NULL OR ENDS_WITH(done.raw_format, '+sealed') OR done.raw = letters.raw"
        run = f"{_known('done', 'run_id', _NO_TEXT)} = {_known('letters', 'run_id', _NO_TEXT)}"
        which = f"CASE WHEN done.how = '{REPLAYED}' THEN {run} ELSE {kept} END"
        there = f"{same} AND {_about('done')} = {_about('letters')} AND {which}"
        where.append(f"NOT EXISTS (SELECT 1 FROM {script.resolutions} AS done WHERE {there})")
    through = _through(script)
    if through:
        runs = " UNION DISTINCT ".join(f"SELECT run_id FROM {files}" for files in script.letters)
        joined = f"\nLEFT JOIN (\n  {through}\n) AS through ON through.source = letters.source AND through.position = letters.position"
        where.append(f"(through.source IS NOT NULL AND {_of_rows('letters')} AND letters.run_id IN ({runs})) IS NOT TRUE")
    return f"SELECT letters.* FROM (\n{letters}\n) AS letters{joined}{_where(*where)}" if where else letters


def _through(script: _Script) -> str:
    """A SELECT of the stream's refused records that have left by another door since; "" where there can be none."""
    doors = [f"SELECT _source AS source, _position AS position, _stored_at AS moment FROM {files}" for files in script.rows]
    doors += [f"SELECT source, position, _stored_at AS moment FROM {script.named('doors_files')}"] if script.doors else []
    if not doors or not script.letters:
        return ""
    said = [f"SELECT source, position, _stored_at AS moment FROM {files} AS f WHERE {_of_rows('f')}" for files in script.letters]
    newest = f"SELECT source, position, MAX(moment) AS said_at FROM ({' UNION ALL '.join(said)}) GROUP BY source, position"
    return (
        f"SELECT DISTINCT door.source, door.position FROM ({' UNION ALL '.join(doors)}) AS door\n  JOIN ({newest}) AS said"
        " ON door.source = said.source AND door.position = said.position WHERE door.moment > said.said_at"
    )


def _of_rows(letter: str) -> str:
    return f"{letter}.stage NOT IN ('{AT_AGGREGATE}', '{AT_SINK}') AND {letter}.position IS NOT NULL"


_NO_TEXT = "''"
_IDENTITY = {"source": _NO_TEXT, "position": "-1", "stage": _NO_TEXT, "reason": _NO_TEXT}
"""Which record a letter is of, and what stands for NULL: BigQuery joins by what is equal only."""


def _known(table: str, column: str, absent: str) -> str:
    return f"COALESCE({table}.{column}, {absent})"


def _about(letter: str) -> str:
    """As `resolutions.about_sql`."""
    return (
        f"CASE WHEN {letter}.stage IN ('{AT_AGGREGATE}', '{AT_SINK}') THEN COALESCE({letter}.failures[SAFE_OFFSET(0)].name, '') ELSE '' END"
    )


def _batch_files(script: _Script, name: str, snapshot: Snapshot) -> str:
    """What holds the rows of a batch output: the table they were loaded into, else an external one over its files."""
    if snapshot.table:
        return _quoted(snapshot.table)
    types = dict(snapshot.schema)
    script.table(f"{name}_batch_files", snapshot.path, {p: types.get(p, "VARCHAR") for p in snapshot.partitions})
    return script.named(f"{name}_batch_files")


def _speed_files(script: _Script, name: str, output: SpeedOutput) -> str:
    """What holds the rows that a stream has stored: the table they were appended to, else an external one over its files."""
    if output.table:
        return _quoted(output.table)
    columns = read_columns(output.folder)
    script.table(f"{name}_speed_files", output.folder, {n: columns[n] for n in sorted(columns, key=_level(output))})
    return script.named(f"{name}_speed_files")


def _level(output: SpeedOutput) -> Callable[[str], int]:
    """How deep the folders of a partition column lie."""
    return lambda column: output.placed.index(column) if column in output.placed else 0


def _where(*conditions: str) -> str:
    known = [c for c in conditions if c]
    return "\nWHERE " + " AND ".join(known) if known else ""


def _buried(script: _Script, snapshot: Snapshot, batch: Mapping[str, Snapshot]) -> str:
    """A condition on rows: no run over another range has found them to be duplicates, or a later one has computed their partition anew."""
    tombstones = batch.get(TOMBSTONES)
    if tombstones is None or not tombstones.files or snapshot.of != ROWS or "_source" not in dict(snapshot.schema):
        return ""
    newer = " OR ".join(
        f"UNIX_MICROS(t.event_time) >= {r.start} AND UNIX_MICROS(t.event_time) < {r.end} AND t.as_of <= {r.as_of}" for r in snapshot.ranges
    )
    there = f"t.source = f._source AND t.position = f._position AND t.run_id IN ({_texts(sorted({r.run_id for r in snapshot.ranges}))}) AND ({newer or 'FALSE'}) IS NOT TRUE"
    return f"NOT EXISTS (SELECT 1 FROM {script.named(f'{TOMBSTONES}_batch_files')} AS t WHERE {there})"


def _speed(script: _Script, state: str, output: SpeedOutput, files: str, *, unless: str = "FALSE") -> str:
    files = f"{files} AS f"
    doors = script.named("doors_files")
    if output.of == LETTERS:
        gone = f"f.stage = 'aggregate' AND EXISTS (SELECT 1 FROM {doors} AS d WHERE d.door = 'duplicate' AND d.source = f.source AND d.position = f.position)"
        gone = gone if script.doors else "FALSE"
        first = f"REPLACE (MIN(_stored_at) OVER (PARTITION BY {LETTER}) AS _stored_at)"
        kept = f"SELECT f.* {first} FROM {files}\n  WHERE NOT ({gone})\n  {_newest(LETTER, 'run_id DESC')}"
        return f"SELECT * EXCEPT (_stored_at) FROM (\n  {kept}\n)\nWHERE ({unless}) IS NOT TRUE"
    known = _placed(output)
    place = [_quoted(c) for c in known] if len(output.placings) <= 1 else []
    if output.of != ROWS:
        window = ", ".join([*(_quoted(c) for c in output.group_by), "_window_start", "_window_end", *place])
        newest = _newest(window, "_epoch DESC, _pane_index DESC")
        return f"SELECT * FROM (\n  SELECT * FROM {files} {_anew(state, output)}\n  {newest}\n)\nWHERE _pane <> 'retracted'"
    hidden = "_stored_at" if output.provenance else f"{KEPT}, _stored_at"
    gone = f"EXISTS (SELECT 1 FROM {doors} AS d WHERE d.door = 'duplicate' AND d.source = f._source AND d.position = f._position)"
    gone = gone if script.doors else "FALSE"
    kept = f"SELECT * FROM {files}\n  WHERE NOT {gone}\n  {_newest(', '.join(['_source', '_position', *place]), '_run_id DESC')}"
    return f"SELECT * EXCEPT ({hidden}) FROM (\n  {kept}\n) AS f{_where(*_refused_since(script, output))}"


def _placed(output: SpeedOutput) -> tuple[str, ...]:
    """The columns that say where a row lies; a table has none that stand in names of folders."""
    folders = read_columns(output.folder) if output.table else {}
    return tuple(c for c in output.placed if c not in folders)


def _refused_since(script: _Script, output: SpeedOutput) -> Iterator[str]:
    """As `speed_views` leaves out rows that a later pass of the stream has refused or filtered."""
    of_row = f"l.stage NOT IN ('{AT_AGGREGATE}', '{AT_SINK}') OR l.stage = '{AT_SINK}' AND l.failures[SAFE_OFFSET(0)].name = {_text(output.name)}"
    looked = [(files, of_row) for files in script.letters]
    looked += [(script.named("doors_files"), f"l.door = '{FILTERED}'")] if script.doors and len(output.placings) > 1 else []
    for name, condition in looked:
        same = "l.source = f._source AND l.position = f._position AND l._stored_at > f._stored_at"
        yield f"NOT EXISTS (SELECT 1 FROM {name} AS l WHERE {same} AND ({condition}))"


def _anew(state: str, output: SpeedOutput) -> str:
    later = shown_anew(state)
    if not later:
        return "WHERE TRUE"
    starts = ", ".join(f"STRUCT({epoch} AS epoch, {began} AS began, {came} AS came)" for epoch, began, came in later)
    end = "UNIX_MICROS(_window_end)"
    return (
        f"WHERE NOT EXISTS (SELECT 1 FROM UNNEST([{starts}]) AS later WHERE later.epoch > f._epoch"
        f" AND {end} + {output.open_micros} >= later.began AND {end} + {output.shown_micros} < later.came)"
    )


def _newest(by: str, order: str) -> str:
    return f"QUALIFY ROW_NUMBER() OVER (PARTITION BY {by} ORDER BY {order}) = 1"


def _answered(snapshot: Snapshot, columns: Mapping[str, str]) -> str:
    """A condition on rows of the speed layer: the batch has the answer there."""
    clock = snapshot.clock
    assert clock is not None
    ranges = union((r.start, r.end) for r in snapshot.ranges)
    if clock.partition in columns:
        kind = "DATE " if columns[clock.partition] == "DATE" else ""
        column = _quoted(clock.partition)
        number = columns[clock.partition] not in _TYPES
        shown = [tuple(partition_value(at, clock.unit) for at in r) for r in ranges]
        texts = [(start, end) if number else (f"{kind}'{start}'", f"{kind}'{end}'") for start, end in shown]
    else:
        column = f"UNIX_MICROS(TIMESTAMP({_quoted(clock.column)}))"
        texts = [(str(r.start), str(r.end)) for r in ranges]
    undated = any(partition_range(file.partition, clock.partition, clock.unit) is None for file in snapshot.files)
    within = [f"({column} >= {start} AND {column} < {end})" for start, end in texts]
    return " OR ".join([*within, *([f"{column} IS NULL"] if undated else [])]) or "FALSE"


def _superseded(snapshot: Snapshot) -> str:
    """Leaves out dead letters that a later run has read again."""
    clauses = [
        f"NOT (f.run_id = {_text(run)} AND f.source IN ({', '.join(map(_text, of))}))" for run, of in snapshot.superseded.items() if of
    ]
    for settled in snapshot.settled:
        older = [run for run, version in snapshot.said_in.items() if version < settled.version]
        sources = snapshot.source_sets.get(settled.sources, ())
        if older and sources:
            arrived = "" if settled.since is None else f" AND UNIX_MICROS(f.arrival_time) >= {settled.since}"
            times = f"(f.event_time IS NULL OR UNIX_MICROS(f.event_time) >= {_int(settled.start)} AND UNIX_MICROS(f.event_time) < {settled.end})"
            clauses.append(f"NOT (f.run_id IN ({_texts(older)}) AND f.source IN ({_texts(sources)}) AND {times}{arrived})")
    return "\nWHERE " + "\n  AND ".join(f"({c}) IS NOT FALSE" for c in clauses) if clauses else ""


def _superseded_in_stream(letters: Snapshot, batch: Mapping[str, Snapshot]) -> str:
    """A condition on a dead letter of the stream: a batch run has read its record since, or is the authority where it would be."""
    stored, found = "UNIX_MICROS(_stored_at)", []
    for settled in letters.settled:
        sources = letters.source_sets.get(settled.sources, ())
        if sources:
            arrived = "" if settled.since is None else f" AND UNIX_MICROS(arrival_time) >= {settled.since}"
            times = f"(event_time IS NULL OR UNIX_MICROS(event_time) >= {_int(settled.start)} AND UNIX_MICROS(event_time) < {settled.end})"
            found.append(f"{stored} < {settled.as_of} AND source IN ({_texts(sources)}) AND {times}{arrived}")
    for output in batch.values():
        if output.clock is not None and output.of != LETTERS:
            of = (
                "stage <> 'aggregate'"
                if output.of == ROWS
                else f"stage = 'aggregate' AND SPLIT(failures[SAFE_OFFSET(0)].name, '.')[SAFE_OFFSET(0)] = {_text(output.of)}"
            )
            found += [
                f"{of} AND UNIX_MICROS(event_time) >= {r.start} AND UNIX_MICROS(event_time) < {r.end} AND {stored} < {r.as_of}"
                for r in output.ranges
            ]
    return " OR ".join(f"({c})" for c in found) or "FALSE"


def _texts(values: Sequence[str]) -> str:
    return ", ".join(map(_text, values))


def _quoted(name: str) -> str:
    """A name between backticks. Raises SpecError for one that would not end there."""
    if any(c in "`\\\n\r" for c in name):
        raise SpecError(f"serve: --bigquery: the name {name!r}: BigQuery takes no backtick, backslash or line break in it.")
    return f"`{name}`"


def _text(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n").replace("\r", "\\r")
    return f"'{escaped}'"


def _int(value: int) -> str:
    return f"({value + 1} - 1)" if value == -(2**63) else str(value)
