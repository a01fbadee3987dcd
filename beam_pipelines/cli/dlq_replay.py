"""`dlq replay`: what is about to happen, then what did."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import pyarrow as pa

    from beam_pipelines.runners.replay_letters import Fate, Planned
    from beam_pipelines.sinks.results import RunResults
    from beam_pipelines.spec.load import LoadedSpec


@dataclass(frozen=True)
class Asked:
    """How `dlq replay` was called."""

    topic: str | None
    ignore_stream: bool
    dry_run: bool
    as_json: bool


def into_batch(found: LoadedSpec, letters: pa.Table, crashed: pa.Table, asked: Asked) -> int:
    """Replays letters by computing the partitions that they touch anew; gives the exit code: 1 where a run failed."""
    from beam_pipelines.runners.direct import Call
    from beam_pipelines.runners.replay_letters import carry_out, plan_batch, resolved

    plan = plan_batch(found, letters, crashed=crashed, ignore_stream=asked.ignore_stream)
    said = {"replay": plan.replay, "into": "batch", "dry_run": asked.dry_run, **_outlook(plan.fates)}
    said["runs"] = [_run(run) for run in plan.runs]
    _say(asked, _lines(plan.fates), (f"  {_where(run)}: {_letters(run.letters)}" for run in plan.runs))
    if asked.dry_run:
        return _ended(asked, said, "nothing was run (--dry-run)")
    records: list[RunResults] = []
    call = Call(args={"spec": found.path, "dlq_replay": plan.replay})
    for record in carry_out(found, plan, call, say=lambda run: _say(asked, [f"run {run.run_id} over {_where(run)} …"])):
        records.append(record)
        _say(asked, (f"  failed: {why}" for why in record.failures))
    through = resolved(found, plan) if records else 0
    failed = any(record.status != "success" for record in records)
    said |= {
        "resolved": through,
        "statuses": {r.metadata.run_id: r.status for r in records},
        "failures": [f for r in records for f in r.failures],
    }
    left = plan.taken.num_rows - through
    sentence = f"{_letters(through)} resolved" + (f"; {_letters(left)} of those replayed still open" if left else "")
    return _ended(asked, said, sentence, code=int(failed))


def into_stream(found: LoadedSpec, letters: pa.Table, asked: Asked) -> int:
    """Sends the messages of letters again; gives the exit code: 1 where a topic refused some."""
    from beam_pipelines.runners.replay_to_stream import plan_stream, send

    plan = plan_stream(found, letters, topic=asked.topic)
    said: dict[str, Any] = {"replay": plan.replay, "into": "stream", "dry_run": asked.dry_run, **_outlook(plan.fates)}
    said |= {"messages": len(plan.messages), "topics": dict(plan.topics)}
    where = [f"  to {topic}, for {name}; other subscriptions of the topic get them, too" for name, topic in plan.topics.items()]
    _say(asked, _lines(plan.fates), where)
    if asked.dry_run:
        return _ended(asked, said, "nothing was sent (--dry-run)")
    refused = send(found, plan)
    said |= {"sent": len(plan.messages) - len(refused), "refused": len(refused)}
    _say(asked, (f"  refused: {source}, position {position}: {why}" for (source, position), why in refused[:5]))
    sent = len(plan.messages) - len(refused)
    sentence = (
        f"{sent:,} messages sent; their letters are resolved once the stream has stored them (dlq inspect)" if sent else "nothing was sent"
    )
    return _ended(asked, said, sentence, code=int(bool(refused)))


def _outlook(fates: Sequence[Fate]) -> dict[str, Any]:
    counts = Counter(fate.why for fate in fates)
    reasons = Counter(fate.detail for fate in fates if fate.why == "still refused")
    return {"letters": len(fates), "fates": dict(counts), "still_refused": dict(reasons)}


def _lines(fates: Sequence[Fate]) -> Iterator[str]:
    from beam_pipelines.cli.tables import clean
    from beam_pipelines.runners.letter_partitions import SENTENCES

    yield f"{_letters(len(fates), 'open ')}:"
    for why, n in sorted(Counter(fate.why for fate in fates).items(), key=lambda item: (item[0] != "replay", -item[1])):
        details = Counter(fate.detail for fate in fates if fate.why == why and fate.detail)
        shown = ", ".join(f"{clean(d)} {k:,}" if len(details) > 1 else clean(d) for d, k in details.most_common(3))
        yield f"  {n:,} {SENTENCES[why]}" + (f" ({shown}{', …' if len(details) > 3 else ''})" if shown else "")


def _letters(count: int, kind: str = "") -> str:
    return f"{count:,} {kind}letter{'' if count == 1 else 's'}"


def _where(run: Planned) -> str:
    from beam_pipelines.arrow.ranges import show_range

    return f"{'everything' if run.range is None else show_range(run.range)} from the {'archive' if run.input == 'archive' else 'batch sources'}"


def _run(run: Planned) -> dict[str, Any]:
    from beam_pipelines.arrow.ranges import show_instant

    ends = (None, None) if run.range is None else tuple(show_instant(at) for at in run.range)
    return {"run_id": run.run_id, "from": ends[0], "to": ends[1], "input": run.input, "letters": run.letters}


def _say(asked: Asked, *parts: Any) -> None:
    if not asked.as_json:
        for line in (line for part in parts for line in part):
            click.echo(line)
        sys.stdout.flush()


def _ended(asked: Asked, said: dict[str, Any], sentence: str, *, code: int = 0) -> int:
    import msgspec

    click.echo(msgspec.json.encode(said).decode() if asked.as_json else sentence)
    return code
