"""Mask: sensitive columns as the contract says, at the exit of a job of your own. A run of a spec masks at every exit by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
import pyarrow as pa

from beam_pipelines.arrow.contract import Contract
from beam_pipelines.arrow.masking import mask_columns, mask_letters
from beam_pipelines.arrow.sensitive import for_letters, sensitive_columns
from beam_pipelines.arrow.transform import TransformStep
from beam_pipelines.coders import RecordBatchCoder  # noqa: F401  (registers the element's coder)
from beam_pipelines.errors import SpecError
from beam_pipelines.transforms.given import batches, contract_of
from beam_pipelines.transforms.stage import arriving

Key = Callable[[], bytes | None]


class Mask(beam.PTransform):  # type: ignore[misc]  # Beam ships no types
    """Rows with the contract's `sensitive` columns masked (hmac, redact, drop); put it last, before rows leave.

    Takes the result of a stage, or a PCollection of RecordBatch, and gives the same back, masked. Of dead letters the raw bytes are sealed under
    `raw_key`, or left out, and messages do not quote values. `steps` are those of the Transforms before: what they compute from a sensitive
    column is masked as that is. `key` and `raw_key` are functions that give a secret on the worker, so that it is not part of the job.

        validated | Mask(contract, key=lambda: os.environ["HMAC_KEY"].encode()) | ToRows()

    Raises SpecError where a column is `sensitive: hmac` and there is no `key`.
    """

    def __init__(
        self,
        contract: Contract | Mapping[str, Any],
        *,
        steps: Sequence[TransformStep | Mapping[str, Any]] = (),
        key: Key | None = None,
        raw_key: Key | None = None,
    ) -> None:
        super().__init__()
        self.contract = contract_of(contract, "Mask")
        read = [s if isinstance(s, TransformStep) else TransformStep.model_validate(s) for s in steps]
        self.how = sensitive_columns(self.contract, read)
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
        masked = rows | "MaskRows" >> self._do(_Rows(self.how, self.key))
        if isinstance(stage, beam.PCollection):
            return masked
        names = getattr(stage, "_fields", ("rows", "dead", "counts") if len(stage) > 2 else ("rows", "counts"))
        parts = [masked, *(self._other(name, part) for name, part in zip(names[1:], stage[1:], strict=True))]
        return stage._make(parts) if hasattr(stage, "_make") else tuple(parts)

    def _other(self, name: str, part: beam.PCollection) -> beam.PCollection:
        if name == "dead":
            return part | "MaskDead" >> self._do(_Letters(self.letters, self.raw_key))
        return part | "MaskDuplicates" >> self._do(_Rows(self.how, self.key)) if name == "duplicates" else part

    def _do(self, mask: beam.DoFn) -> beam.PTransform:
        return beam.ParDo(mask).with_output_types(pa.RecordBatch)


class _Rows(beam.DoFn):  # type: ignore[misc]
    def __init__(self, how: Mapping[str, str], key: Key | None) -> None:
        self._how, self._key = how, key

    def setup(self) -> None:
        self._secret = None if self._key is None else self._key()

    def process(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        yield mask_columns(batch, self._how, key=self._secret)


class _Letters(beam.DoFn):  # type: ignore[misc]
    def __init__(self, contract: Contract, key: Key | None) -> None:
        self._contract, self._key = contract, key

    def setup(self) -> None:
        self._secret = None if self._key is None else self._key()

    def process(self, letters: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        yield mask_letters(letters, self._contract, raw_key=self._secret)
