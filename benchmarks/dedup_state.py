"""What deduplication of a stream costs with a million live keys in one process: memory, CPU per row, and reading state back.

    python benchmarks/dedup_state.py
    python benchmarks/dedup_state.py --keys 4000000

Fills the state with `--keys` rows, then measures as many again at a steady state (what is older than the horizon is forgotten meanwhile): batches of
20,000 rows, 3 % of them copies of earlier rows, `within` and `lateness` two days. The stages' own code runs, without a runner. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Iterator

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.utils.timestamp import Timestamp

from beam_pipelines.arrow.contract import Column, Contract
from beam_pipelines.arrow.copies import Copies
from beam_pipelines.arrow.duplicates import comparison
from beam_pipelines.arrow.held import CELLS
from beam_pipelines.arrow.keys import DeduplicateRule
from beam_pipelines.arrow.schema import PROVENANCE, UTC_MICROS, provenance
from beam_pipelines.coders import RecordBatchCoder
from beam_pipelines.transforms.deduplicate_stream import ByRule, DigestRows
from beam_pipelines.transforms.sliced_state import BUCKETS

DAY = 86_400_000_000
BATCH = 20_000
COPIES = 0.03
CONTRACT = Contract(
    key=("id",),
    event_time="at",
    columns={
        "id": Column(type="string"),
        "at": Column(type="timestamp"),
        "country": Column(type="string"),
        "amount": Column(type="float64"),
        "n": Column(type="int32"),
    },
)
HOW = comparison(DeduplicateRule(within="2d"), contract=CONTRACT)
CODER = RecordBatchCoder()


class Buckets:
    """The stages by hand: what each bucket holds, and its saved state as bytes."""

    def __init__(self) -> None:
        self.first, self.rule = DigestRows(HOW, 2 * DAY), ByRule(HOW, 2 * DAY)
        self.first.setup()
        self.held = [self.rule.load([]) for _ in range(BUCKETS)]
        self.saved: list[list[list[bytes]]] = [[[] for _ in range(CELLS)] for _ in range(BUCKETS)]
        self.digest_s = self.judge_s = 0.0
        self.duplicates = 0

    def run(self, batch: pa.RecordBatch, arrival: int) -> None:
        begun = time.process_time()
        self.first.start_bundle()
        keyed = [k.value for k in [*self.first.process(batch, Timestamp(micros=arrival)), *self.first.finish_bundle()]]
        digested = time.process_time()
        for bucket, rows in keyed:
            held = self.held[bucket]
            if held.first_end is not None and held.first_end + self.rule.horizon <= arrival:
                held.expire(arrival - self.rule.horizon)
            for output in self.rule.judge(held, rows):
                if isinstance(output, beam.pvalue.TaggedOutput):
                    self.duplicates += output.value[-1]
            self._save(bucket, held)
        self.digest_s += digested - begun
        self.judge_s += time.process_time() - digested

    def _save(self, bucket: int, held: Copies) -> None:
        for cell, anew, piece in held.save():
            if anew:
                self.saved[bucket][cell] = []
            if piece is not None:
                self.saved[bucket][cell].append(CODER.encode(piece))

    def reload_s(self) -> float:
        """CPU seconds to have all of it again from the bytes of state."""
        begun = time.process_time()
        again = [self.rule.load([[CODER.decode(b) for b in cell] for cell in cells]) for cells in self.saved]
        took = time.process_time() - begun
        assert [len(a) for a in again] == [len(h) for h in self.held]
        return took


def batches(rows: int, live: int) -> Iterator[tuple[pa.RecordBatch, int]]:
    """(batch, arrival): `live` rows arrive in four days, each an hour old at most."""
    chance, step = np.random.default_rng(0), 4 * DAY // live
    for start in range(0, rows, BATCH):
        number = np.arange(start, start + BATCH)
        copies = chance.random(BATCH) < COPIES
        number[copies] = chance.integers(max(0, start - live // 2), start + 1, int(copies.sum()))
        arrival = np.arange(start, start + BATCH) * step
        at = arrival - chance.integers(0, DAY // 24, BATCH)
        columns = [
            *provenance("projects/p/subscriptions/s", pa.array(np.arange(start, start + BATCH)), pa.array(arrival, UTC_MICROS)),
            pa.array(np.char.mod("%016x", number * 0x9E3779B97F4A7C1 % 2**60)),
            pa.array(at, UTC_MICROS),
            pa.array(["DE", "FR", "US", "JP"]).take(pa.array(chance.integers(0, 4, BATCH))),
            pa.array(chance.random(BATCH).round(2)),
            pa.array(chance.integers(0, 100, BATCH).astype("i4")),
        ]
        yield pa.record_batch(columns, names=[*PROVENANCE.names, "id", "at", "country", "amount", "n"]), int(arrival[-1])


def main() -> None:
    """Fills, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=1_000_000)
    keys = parser.parse_args().keys // BATCH * BATCH
    buckets = Buckets()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number, (batch, arrival) in enumerate(batches(2 * keys, keys)):
        if number * BATCH == keys:
            fill_s, buckets.digest_s, buckets.judge_s = buckets.judge_s, 0.0, 0.0
        buckets.run(batch, arrival)
    held = sum(map(len, buckets.held))
    answer = {
        "keys_held": held,
        "duplicates": buckets.duplicates,
        "bytes_per_key": round(sum(h.nbytes for h in buckets.held) / held, 1),
        "state_bytes_per_key": round(sum(len(b) for cells in buckets.saved for cell in cells for b in cell) / held, 1),
        "peak_mib_grown": round((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024),
        "digest_us_per_row": round(buckets.digest_s / keys * 1e6, 2),
        "judge_us_per_row": round(buckets.judge_s / keys * 1e6, 2),
        "judge_us_per_row_while_filling": round(fill_s / keys * 1e6, 2),
        "reload_us_per_key": round(buckets.reload_s() / held * 1e6, 2),
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
