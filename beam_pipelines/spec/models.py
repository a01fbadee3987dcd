"""The spec as one frozen model: what the YAML may say."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from beam_pipelines.arrow.aggregate import AggregateSpec
from beam_pipelines.arrow.contract import Contract
from beam_pipelines.arrow.keys import MOST_SHARDS, DeduplicateRule
from beam_pipelines.arrow.model import Model
from beam_pipelines.arrow.sensitive import for_letters
from beam_pipelines.arrow.transform import TransformStep
from beam_pipelines.arrow.validate import Check
from beam_pipelines.spec.parameters import Parameter
from beam_pipelines.spec.retention import Retention
from beam_pipelines.spec.sinks import Sink
from beam_pipelines.spec.sources import LookupField, Sources

DEFAULT_HMAC_KEY = "env:BEAM_PIPELINES_HMAC_KEY"


class Thresholds(Model):
    """When a batch run fails although it ran: shares of the rows read."""

    dead_letters: float | None = Field(None, ge=0, le=1, description="Largest share of dead letters.")
    per_check: dict[str, float] = Field({}, description="Largest share of rows failing a check, by its name.")


class DeadLetterSettings(Model):
    """Raw bytes of dead letters where columns are sensitive."""

    raw_key: str | None = Field(
        None, description="Secret reference of a 32-byte key: raw bytes are stored encrypted (AES-256-GCM); without it they are left out."
    )


class PipelineSpec(Model):
    """One pipeline, batch and stream."""

    spec: Literal[1] = Field(description="Version of this language.")
    pipeline: str = Field(pattern=r"^[a-z][a-z0-9_-]{0,62}$", description="The pipeline's name.")
    version: str = Field("0", description="The pipeline's version, for people; kept in dead letters and runs.")
    description: str = Field("", description="For people.")
    time_zone: str = Field("UTC", description="Zone of local times and bare dates; partitions are UTC days all the same.")
    parameters: dict[str, Parameter] = Field({}, description="Values set at the call and put in place of `${name}`.")
    state: str | None = Field(None, description="Where runs and manifests are kept; default: `.beam_pipelines/<pipeline>` beside the spec.")
    contract: Contract = Field(description="What a row is; or `{file: contracts/flights.yaml}`.")
    sources: Sources = Field(description="Where rows come from, as files and as a stream.")
    lookups: dict[str, LookupField] = Field({}, description="Tables that rows are enriched from, by name.")
    transform: tuple[TransformStep, ...] = Field((), description="Steps, in order.")
    checks: tuple[Check, ...] = Field((), description="What must hold of a row or of the run.")
    thresholds: Thresholds = Field(Thresholds(), description="When a batch run fails although it ran.")
    deduplicate: DeduplicateRule | None = Field(None, description="Which copy of a thing stays.")
    aggregates: dict[str, AggregateSpec] = Field({}, description="Measures per group and window, by name.")
    state_shards: int | None = Field(
        None, ge=1, le=MOST_SHARDS,
        description=f"Into how many keys a stream cuts the state of `deduplicate`, and of each aggregate: so many workers can share it, and each costs something in every bundle. Default: 4, and 2; at most {MOST_SHARDS}. Raise it for a stream in several processes, or on many workers of Dataflow.",
    )  # fmt: skip
    sinks: tuple[Sink, ...] = Field(min_length=1, description="Where outputs go.")
    provenance: Literal["on", "off"] = Field(
        "on", description="Whether written rows keep `_source`, `_position`, `_arrival_time`, `_run_id`, `_contract`."
    )
    dead_letters: DeadLetterSettings = Field(DeadLetterSettings(), description="How raw bytes of dead letters are kept.")
    retention: Retention = Field(Retention(), description="How long what is kept is kept; default: for ever.")
    hmac_key: str | None = Field(
        None, description="Secret reference of the key for `sensitive: hmac`; default: `env:BEAM_PIPELINES_HMAC_KEY`."
    )

    @property
    def functions(self) -> tuple[str, ...]:
        """The user's own functions that steps apply, as `package.module:function`."""
        return tuple(step.apply.function for step in self.transform if step.apply is not None)

    @property
    def sensitive(self) -> dict[str, str]:
        """Columns whose values raw bytes may hold, and how each is masked: the contract's, and what steps make of them or declare sensitive.
        With any, raw bytes are stored encrypted, or not at all."""
        return for_letters(self.contract, self.transform).sensitive

    @property
    def hmac_reference(self) -> str | None:
        """The secret reference that masking needs: None where no column is `sensitive: hmac`. Without a key workers fail: nothing is
        ever written unmasked."""
        applied = {how for step in self.transform if step.apply is not None for how in step.apply.sensitive.values()}
        if "hmac" not in applied.union(self.contract.sensitive.values()):
            return None
        return self.hmac_key or DEFAULT_HMAC_KEY
