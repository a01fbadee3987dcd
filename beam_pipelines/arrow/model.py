"""The base of every frozen, declared-once model (contract, checks, steps, sinks)."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Model(BaseModel):
    """A frozen pydantic model that refuses unknown fields.

    Models are declared once and serve as parser, validator, JSON Schema and Python API. They load neither pyarrow nor Beam,
    so that `beam-pipelines validate` answers at once.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, defer_build=True)


class Misfits(ValueError):
    """Parts of a model that do not fit together: each a path inside the model (field names, keys) and a sentence."""

    def __init__(self, *faults: tuple[tuple[str | int, ...], str]) -> None:
        self.faults = faults
        super().__init__("; ".join(f"{'.'.join(map(str, path))}: {text}" if path else text for path, text in faults))


def refuse(faults: list[tuple[tuple[str | int, ...], str]]) -> None:
    """Raises Misfits if there are any."""
    if faults:
        raise Misfits(*faults)
