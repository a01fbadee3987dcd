"""Transform steps: filter, set, rename, drop, apply, lookup."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from beam_pipelines.arrow.contract import TypeText
from beam_pipelines.arrow.model import Model
from beam_pipelines.errors import nearest


class Apply(Model):
    """A user's own function, RecordBatch -> RecordBatch of as many rows; its exceptions become dead letters (reason APPLY)."""

    function: str = Field(pattern=r"^[\w.]+:\w+$", description="package.module:function")
    columns: dict[str, TypeText] = Field(description="Columns the function adds or replaces, with their types.")
    sensitive: dict[str, Literal["hmac", "redact", "drop", "none"]] = Field(
        {},
        description="How these columns are masked at every exit, by name; `none`: not. Default: as the strictest sensitive column that the function sees.",
    )

    @field_validator("sensitive")
    @classmethod
    def _declared(cls, sensitive: dict[str, str], info: ValidationInfo) -> dict[str, str]:
        columns: dict[str, str] = info.data.get("columns", sensitive)  # not there where they are wrong
        for name in sensitive:
            if name not in columns:
                raise ValueError(f"no column {name!r}; {nearest(name, columns)}")
        return sensitive


class LookupStep(Model):
    """Columns taken from a lookup table. A miss is NULL."""

    from_: str = Field(alias="from", description="The lookup's name.")
    on: str | tuple[str, ...] | dict[str, str] = Field(
        description="Row column(s) matched with the lookup's key, in order, or {row column: lookup column}."
    )
    take: dict[str, str] = Field(min_length=1, description="New column name to lookup column.")


class TransformStep(Model):
    """One step: exactly one of `filter`, `set`, `rename`, `drop`, `apply`, `lookup`."""

    filter: str | None = Field(None, description="SQL; rows for which it is not TRUE leave as `filtered`.")
    set: dict[str, str] | None = Field(None, description="Column name to SQL; later entries may use earlier ones.")
    rename: dict[str, str] | None = Field(None, description="New name to old name.")
    drop: tuple[str, ...] | None = Field(None, description="Columns to leave out.")
    apply: Apply | None = Field(
        None, description="`package.module:function` needs `{function: ..., columns: {...}}`, unless it changes no column's type."
    )
    lookup: LookupStep | None = Field(None, description="Columns taken from a lookup table.")

    @field_validator("apply", mode="before")
    @classmethod
    def _short(cls, value: object) -> object:
        return {"function": value, "columns": {}} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one(self) -> TransformStep:
        given = [k for k in ("filter", "set", "rename", "drop", "apply", "lookup") if getattr(self, k) is not None]
        if len(given) != 1:
            raise ValueError(
                f"a transform step is exactly one of filter, set, rename, drop, apply, lookup; got {', '.join(given) or 'none'}"
            )
        return self
