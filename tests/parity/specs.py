"""The pipelines whose two paths are compared: one spec per kind of window, as YAML, with every measure. What may be chosen is a `Setting`."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st

SUBSCRIPTION = "projects/demo-project/subscriptions/sales"
NAME = "by_kind"
"""The aggregate."""

WINDOWS = {
    "fixed": "{type: fixed, size: 30m, %s}",
    "sliding": "{type: sliding, size: 1h, period: 20m, %s}",
    "sessions": "{type: sessions, gap: 15m, max_length: 1h, %s}",
    "calendar": "{type: calendar, unit: day, time_zone: Europe/Berlin, %s}",
}
KINDS = tuple(WINDOWS)

SPEC = """
spec: 1
pipeline: parity
contract:
  key: [id]
  event_time: at
  allowed_skew: 30m
  columns:
    id:      {type: int64, required: true}
    at:      {type: timestamp}
    kind:    {type: string, in: [a, b, none]}
    price:   {type: "decimal(10,2)"}
    n:       {type: int32}
    m:       {type: int32}
    version: {type: int32}
sources:
  batch:  [{archive: archive, format: json}]
  stream: [{pubsub: SUBSCRIPTION, format: json, arrival: {attribute: arrived_at}, archive: archive}]
transform:
  - filter: "kind IS DISTINCT FROM 'none'"
  - set: {share: "60 // n"}
checks:
  - {name: cheap, expr: "price < 1000"}
  - {name: whole, expr: "price = floor(price)", severity: warn}
DEDUPLICATE
aggregates:
  by_kind:
    windowing: WINDOWING
    TRIGGER
    group_by: [kind]
    measures:
      rows_:  count()
      priced: count(price)
      total:  sum(price)
      few:    min(n)
      most:   max(price)
      mean:   avg(price)
      spread: stddev(n)
      seen:   count_distinct(version)
      opened: first(price)
      closed: last(n)
      middle: quantile(price, 0.5)
      cheap:  sum(n) where price < 2
      risky:  sum(60 // m)
STATE_SHARDS
sinks:
  - {from: rows, parquet: {path: lake/rows, partition_by: [day(at)]}}
  - {from: by_kind, parquet: {path: lake/by_kind}}
  - {from: dead_letters, parquet: {path: lake/dead}}
"""
MEASURES = ("rows_", "priced", "total", "few", "most", "mean", "spread", "seen", "opened", "closed", "middle", "cheap", "risky")


@dataclass(frozen=True)
class Setting:
    """What differs between the specs. Times in minutes; `within` None: no rule for duplicates."""

    kind: str
    within: int | None = 60
    keep: str = "newest"
    order_by: str = "_arrival_time"
    delay: int = 5
    lateness: int = 30
    early: bool = False
    late: str = "every_batch"
    shards: int | None = None

    @property
    def yaml(self) -> str:
        times = f"watermark_delay: {self.delay}m, allowed_lateness: {self.lateness}m"
        rule = f"deduplicate: {{within: {self.within}m, keep: {self.keep}, order_by: {self.order_by}}}" if self.within is not None else ""
        trigger = f"trigger: {{{'early: 10m, ' if self.early else ''}late: {self.late}}}"
        shards = "" if self.shards is None else f"state_shards: {self.shards}"
        found = SPEC.replace("SUBSCRIPTION", SUBSCRIPTION).replace("DEDUPLICATE", rule).replace("STATE_SHARDS", shards)
        return found.replace("WINDOWING", WINDOWS[self.kind] % times).replace("TRIGGER", trigger)

    @property
    def closes_after(self) -> int:
        """Minutes after its own window's end at which a row is too late."""
        return max(self.delay, self.lateness)


def settings_of(kind: str) -> st.SearchStrategy[Setting]:
    """Specs with windows of this kind."""
    return st.builds(
        Setting, st.just(kind), within=st.sampled_from([60, 20]), keep=st.sampled_from(["newest", "oldest"]),
        order_by=st.sampled_from(["_arrival_time", "version"]), delay=st.sampled_from([0, 5]), lateness=st.sampled_from([30, 0, 120]),
        early=st.booleans(), late=st.sampled_from(["every_batch", "never"]),
        shards=st.sampled_from([None, 1, 7]),
    )  # fmt: skip
