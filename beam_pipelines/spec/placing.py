"""What decides where a row lies: two jobs of equal placing give a record the same event time and partition."""

from __future__ import annotations

import hashlib

import msgspec

from beam_pipelines.spec.models import PipelineSpec


def placing(spec: PipelineSpec) -> str:
    """16 hex digits over the contract, the transform steps and the time zone. What an `apply` function does inside is not seen."""
    steps = [step.model_dump(mode="json", exclude_defaults=True, by_alias=True) for step in spec.transform]
    return hashlib.sha256(msgspec.json.encode([spec.contract.fingerprint, steps, spec.time_zone], order="sorted")).hexdigest()[:16]
