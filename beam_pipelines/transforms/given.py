"""What users give the stages: contracts, checks and PCollections, taken as they are meant or refused with a sentence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.typehints.typehints import is_consistent_with
from pydantic import ValidationError

from beam_pipelines.arrow.contract import Contract
from beam_pipelines.arrow.validate import Check
from beam_pipelines.errors import SpecError
from beam_pipelines.stage_results import arriving

_TAKES_ONE = (beam.ParDo, beam.GroupByKey, beam.CombineGlobally, beam.CombinePerKey, beam.Reshuffle)


def contract_of(given: Contract | Mapping[str, Any], stage: str) -> Contract:
    """A contract, or the mapping that stands under `contract:` in a spec, as a contract. Raises SpecError for anything else."""
    if isinstance(given, Contract):
        return given
    if isinstance(given, Mapping):
        return Contract.model_validate(given)
    raise SpecError(
        f"{stage}: contract is a {type(given).__name__}; expected a Contract, or a mapping such as a spec has under `contract:`.",
        hint="Contract.model_validate(...) makes one.",
    )


def checks_of(given: Iterable[Check | Mapping[str, Any]], stage: str) -> tuple[Check, ...]:
    """Checks, each a Check or the mapping that a spec has for it. Raises SpecError for anything else."""
    checks = []
    for number, check in enumerate(given):
        if not isinstance(check, Check | Mapping):
            raise SpecError(
                f"{stage}: check {number} is a {type(check).__name__}; expected a Check or a mapping such as {{'name': ..., 'expr': ...}}."
            )
        try:
            checks.append(check if isinstance(check, Check) else Check.model_validate(check))
        except ValidationError as error:
            faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}".lstrip(": ") for e in error.errors())
            raise SpecError(f"{stage}: check {number}: {faults}.") from None
    return tuple(checks)


def batches(given: Any, stage: str) -> Any:
    """`given`, a PCollection of RecordBatch or the result of a stage. Raises SpecError where its elements are known to be something else."""
    if not isinstance(given, beam.PCollection | tuple):
        raise SpecError(f"{stage}: got a {type(given).__name__}; expected a PCollection of RecordBatch, or the result of another stage.")
    kind = arriving(given)[0].element_type
    if kind is not None and not is_consistent_with(kind, pa.RecordBatch):
        raise SpecError(
            f"{stage}: got a PCollection of {getattr(kind, '__name__', kind)}; expected one of RecordBatch.",
            hint="Put FromRows(contract) before it.",
        )
    return given


def piped(result: Any, transform: Any) -> Any:
    """`result | transform`, for results of stages: a transform that takes one PCollection is refused with the names there are."""
    if isinstance(getattr(transform, "transform", transform), _TAKES_ONE):
        fields = ", ".join(f".{name}" for name in result._fields)
        raise SpecError(
            f"{type(result).__name__} | {transform.label}: a stage's result has several PCollections ({fields}); expected one.",
            hint=f"Write `result.{result._fields[0]} | ...`.",
        )
    return transform.__ror__(result)
