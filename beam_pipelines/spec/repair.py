"""A guess at what a spec with wrong fields was meant to be, so that its names and expressions can be checked in the same go."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any, TypeVar

from pydantic import ValidationError

from beam_pipelines.arrow.model import Misfits, Model
from beam_pipelines.spec.document import Document
from beam_pipelines.spec.shape import fields_of, models_at

M = TypeVar("M", bound=Model)
_ROUNDS = 4
_DEEP = 3
_LEAVES = frozenset({"bool_type", "literal_error", "greater_than", "greater_than_equal", "less_than", "less_than_equal", "value_error"})
_MEANINGFUL = frozenset({"type", "expr", "columns", "key", "event_time", "set", "lookup", "rename", "apply", "files", "from", "take", "on"})


def repaired(model: type[M], document: Document) -> M | None:
    """The spec with unknown fields renamed to the nearest one or left out, and optional values that are wrong left out; None if that
    does not make it valid. Nothing is reported."""
    value = document.value
    for _ in range(_ROUNDS):
        try:
            return model.model_validate(value, strict=True, by_alias=True, by_name=False)
        except ValidationError as error:
            for detail in error.errors(include_url=False):
                for loc in _places(detail):
                    changed = _without(value, loc, detail["type"], model)
                    if changed is None:
                        return None
                    value = changed
    return None


def _places(detail: Any) -> list[tuple[int | str, ...]]:
    """Where the wrong fields are: a model's own verdict may name several inside it."""
    error = detail.get("ctx", {}).get("error")
    return [(*detail["loc"], *below) for below, _ in error.faults] if isinstance(error, Misfits) else [tuple(detail["loc"])]


def _without(value: Any, loc: tuple[int | str, ...], kind: str, model: type[Model]) -> Any:
    """A copy without the wrong field; None where that would change what other parts mean."""
    name = str(loc[-1]) if loc else ""
    if kind == "missing":
        return value  # perhaps the field that is renamed in this round
    if kind != "extra_forbidden" and (kind not in _LEAVES or name in _MEANINGFUL or isinstance(loc[-1] if loc else 0, int)):
        return None
    if kind != "extra_forbidden" and len(loc) < _DEEP:
        return None  # a whole section or an entry that others name
    fields = [f for m in models_at(model, loc[:-1]) for f in fields_of(m)] if kind == "extra_forbidden" else []
    return _edited(value, loc, name, fields)


def _edited(value: Any, loc: tuple[int | str, ...], name: str, fields: list[str]) -> Any:
    if len(loc) == 1:
        if not isinstance(value, dict) or name not in value:
            return None
        close = get_close_matches(name, [f for f in fields if f not in value], n=1, cutoff=0.5)
        return {(close[0] if k == name and close else k): v for k, v in value.items() if k != name or close}
    step, below = loc[0], loc[1:]
    if isinstance(value, dict) and step in value:
        changed = _edited(value[str(step)], below, name, fields)
        return None if changed is None else {**value, str(step): changed}
    if isinstance(value, tuple) and isinstance(step, int) and step < len(value):
        changed = _edited(value[step], below, name, fields)
        return None if changed is None else (*value[:step], changed, *value[step + 1 :])
    return _edited(value, below, name, fields)  # a union's tag
