"""What the models look like from outside: the fields of the thing at a place, and what people call it."""

from __future__ import annotations

import re
import types
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from beam_pipelines.arrow.model import Model

ModelType = type[Model]
_VOWELS = "aeio"


def fields_of(model: ModelType) -> dict[str, FieldInfo]:
    """The model's fields by the name they have in a file."""
    return {info.alias or name: info for name, info in model.model_fields.items()}


def thing(model: ModelType) -> str:
    """What people call it.

    >>> from beam_pipelines.spec.sinks import ParquetSink
    >>> thing(ParquetSink)
    'a parquet sink'
    """
    words = re.findall(r"BigQuery|[A-Z][a-z]*", model.__name__)
    if len(words) > 1 and words[-1] in ("Spec", "Step", "Case") and model.__name__ != "TransformStep":
        words.pop()
    text = " ".join(words).lower()
    article = "" if text.endswith("s") else "an " if text[:1] in _VOWELS else "a "
    return article + text


def members(annotation: Any) -> Iterator[Any]:
    """The plain types in an annotation: unions and Annotated opened."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from members(get_args(annotation)[0])
    elif origin in (Union, types.UnionType):
        for member in get_args(annotation):
            yield from members(member)
    else:
        yield annotation


def models_at(root: ModelType, loc: Iterable[str | int]) -> list[ModelType]:
    """The models that may stand at a location of pydantic's, which has union tags between the steps."""
    found: list[Any] = [root]
    for step in loc:
        below = [child for annotation in found for child in _children(annotation, step)]
        found = below or found
    return [a for a in found if is_model(a)]


def _children(annotation: Any, step: str | int) -> Iterator[Any]:
    if is_model(annotation):
        info = fields_of(annotation).get(str(step))
        if info is not None:
            yield from members(info.annotation)
        elif step in tags(annotation) or step == annotation.__name__:
            yield annotation
        return
    origin, args = get_origin(annotation), get_args(annotation)
    if (origin is tuple and isinstance(step, int)) or (origin is dict and isinstance(step, str)):
        yield from members(args[0] if origin is tuple else args[1])


def tags(model: ModelType) -> tuple[str, ...]:
    """The texts of the model's `type` that choose it among others."""
    info = model.model_fields.get("type")
    if info is None or get_origin(info.annotation) is not Literal:
        return ()
    values = get_args(info.annotation)
    return values if len(values) == 1 else ()


def is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Model)
