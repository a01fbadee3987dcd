"""Mask: sensitive columns as the contract says, at the exit of a job of your own. A run of a spec masks at every exit by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
import pyarrow as pa

from beam_pipelines.arrow.aggregate import AggregateSpec
from beam_pipelines.arrow.contract import Contract
from beam_pipelines.arrow.masking import mask_columns, mask_letters
from beam_pipelines.arrow.panes import PANE
from beam_pipelines.arrow.sensitive import for_letters, sensitive_columns, sensitive_panes
from beam_pipelines.arrow.transform import TransformStep
from beam_pipelines.coders import RecordBatchCoder  # noqa: F401  (registers the element's coder)
from beam_pipelines.errors import SpecError
from beam_pipelines.stage_results import arriving, names_of
from beam_pipelines.transforms.given import batches, contract_of

Key = Callable[[], bytes | None]


class Mask(beam.PTransform):  # type: ignore[misc]  # Beam ships no types
    """Rows with the contract's `sensitive` columns masked (hmac, redact, drop); put it last, before rows leave.

    Takes the result of a stage, or a PCollection of RecordBatch, and gives the same back, masked. Of dead letters the raw bytes are sealed under
    `raw_key`, or left out, and messages do not quote values. `steps` are those of the Transforms before: what they compute from a sensitive
    column is masked as that is. Of panes `aggregate` is the spec that they are of: a measure that shows a value as it is, such as `max(mail)`, is masked
    as that column is. `key` and `raw_key` are functions that give a secret on the worker, so that it is not part of the job.

        validated | Mask(contract, key=lambda: os.environ["HMAC_KEY"].encode()) | ToRows()

    Raises SpecError where a column is `sensitive: hmac` and there is no `key`, for panes without `aggregate`, and for rows with it.
    """

    def __init__(
        self,
        contract: Contract | Mapping[str, Any],
        *,
        steps: Sequence[TransformStep | Mapping[str, Any]] = (),
        aggregate: AggregateSpec | None = None,
        key: Key | None = None,
        raw_key: Key | None = None,
    ) -> None:
        super().__init__()
        self.contract = contract_of(contract, "Mask")
        read = [s if isinstance(s, TransformStep) else TransformStep.model_validate(s) for s in steps]
        self.aggregate = aggregate
        self.how = sensitive_columns(self.contract, read)
        if aggregate is not None:
            self.how = sensitive_panes(aggregate, self.how)
        self.letters = for_letters(self.contract, read)
        self.key, self.raw_key = key, raw_key
        for given in (key, raw_key):
            if given is not None and not callable(given):
                raise SpecError(
                    f"Mask: a key is a {type(given).__name__}; expected a function that gives it.",
                    hint="Write key=lambda: ..., which runs on the worker.",
                )
        hashed = [name for name, how in self.how.items() if how == "hmac"]
        if hashed and key is None:
            raise SpecError(f"Mask: column {hashed[0]!r} is `sensitive: hmac`, and there is no key.", hint="Give key, a function.")

    def expand(self, stage: Any) -> Any:
        rows, _, _ = arriving(batches(stage, "Mask"))
        names = () if isinstance(stage, beam.PCollection) else names_of(stage)
        if self.aggregate is None and "panes" in names:
            raise _of_panes()
        masked = rows | "MaskRows" >> self._do(_Rows(self.how, self.key, panes=self.aggregate is not None))
        if not names:
            return masked
        parts = [masked, *(self._other(name, part) for name, part in zip(names[1:], stage[1:], strict=True))]
        return stage._make(parts) if hasattr(stage, "_make") else tuple(parts)

    def _other(self, name: str, part: beam.PCollection) -> beam.PCollection:
        if name == "dead":
            return part | "MaskDead" >> self._do(_Letters(self.letters, self.raw_key))
        return part | "MaskDuplicates" >> self._do(_Rows(self.how, self.key)) if name == "duplicates" else part

    def _do(self, mask: beam.DoFn) -> beam.PTransform:
        return beam.ParDo(mask).with_output_types(pa.RecordBatch)


def _of_panes() -> SpecError:
    return SpecError(
        "Mask: got panes of an aggregate; the contract alone does not say which of their columns show sensitive values.",
        hint="Give its spec: Mask(contract, aggregate=spec).",
    )


def _of_rows() -> SpecError:
    return SpecError(
        "Mask: got rows that are no panes; `aggregate` says which columns of panes are sensitive, not which of these.",
        hint="Mask panes and rows apart: Mask(contract, aggregate=spec) and Mask(contract).",
    )


class _Rows(beam.DoFn):  # type: ignore[misc]
    def __init__(self, how: Mapping[str, str], key: Key | None, *, panes: bool = False) -> None:
        self._how, self._key, self._panes = how, key, panes

    def setup(self) -> None:
        self._secret = None if self._key is None else self._key()

    def process(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        if (PANE in batch.schema.names) != self._panes:
            raise _of_rows() if self._panes else _of_panes()
        yield mask_columns(batch, self._how, key=self._secret)


class _Letters(beam.DoFn):  # type: ignore[misc]
    def __init__(self, contract: Contract, key: Key | None) -> None:
        self._contract, self._key = contract, key

    def setup(self) -> None:
        self._secret = None if self._key is None else self._key()

    def process(self, letters: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        yield mask_letters(letters, self._contract, raw_key=self._secret)
