"""The JSON Schema of the spec language, for editors that complete and check YAML as it is written."""

from __future__ import annotations

from typing import Any

from beam_pipelines.arrow.model import Model
from beam_pipelines.spec.models import PipelineSpec

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_REFERENCE = {"type": "string", "pattern": r"\$\{[^}]+\}", "description": "A parameter: ${name}."}


def json_schema(model: type[Model] = PipelineSpec) -> dict[str, Any]:
    """The schema of a spec (or of another model's file), draft 2020-12.

    It says what the models say, and the short forms people write: `format: csv`, `apply: package.module:function`, durations as texts,
    `contract: {file: …}`, and `${parameter}` where a number, a truth value or one of a few words is expected.
    """
    schema = model.model_json_schema(by_alias=True)
    definitions: dict[str, Any] = schema.get("$defs", {})
    for definition in [schema, *definitions.values()]:
        for name, field in definition.get("properties", {}).items():
            definition["properties"][name] = _written(field)
    if model is PipelineSpec:
        _short_forms(schema, definitions)
        schema["title"] = "beam_pipelines spec"
    return {"$schema": DIALECT, **schema}


def _written(field: dict[str, Any]) -> dict[str, Any]:
    """A field as it may be written: without pydantic's titles and null alternatives, with parameters in place of scalars."""
    plain = {k: v for k, v in field.items() if k not in ("title", "default") or (k == "default" and v is not None)}
    options = [_written(o) for o in plain.get("anyOf", []) if o.get("type") != "null"]
    if "anyOf" in plain:
        del plain["anyOf"]
        plain = {**plain, **options[0]} if len(options) == 1 else {**plain, "anyOf": options}
    if plain.get("type") in ("integer", "number", "boolean") or (plain.get("type") == "string" and ("enum" in plain or "pattern" in plain)):
        kept: dict[str, Any] = {k: plain.pop(k) for k in ("description", "default") if k in plain}
        return {**kept, "anyOf": [_duration(plain), _REFERENCE]}
    return _duration(plain)


def _duration(field: dict[str, Any]) -> dict[str, Any]:
    """Bounds of a duration are numbers of microseconds; as text it has a pattern alone."""
    if field.get("type") == "string":
        return {k: v for k, v in field.items() if k not in ("gt", "ge", "lt", "le", "exclusiveMinimum", "minimum")}
    return field


def _short_forms(schema: dict[str, Any], definitions: dict[str, Any]) -> None:
    for name in ("FileSource", "ArchiveSource", "PubsubSource", "LookupSource"):
        fields = definitions[name]["properties"]
        long = fields["format"]
        words = [w for w in long.get("discriminator", {}).get("mapping", {}) if w != "text"]  # text needs its pattern
        options = {k: v for k, v in long.items() if k in ("oneOf", "discriminator")}
        fields["format"] = {
            "description": "A format by its name, or with its options.",
            "anyOf": [{"type": "string", "enum": words}, options],
        }
    step = definitions["TransformStep"]["properties"]
    function = definitions["Apply"]["properties"]["function"]
    step["apply"] = {**step["apply"], "anyOf": [function, {"$ref": "#/$defs/Apply"}]}
    step["apply"].pop("$ref", None)
    file = {"type": "object", "properties": {"file": {"type": "string"}}, "required": ["file"], "additionalProperties": False}
    contract = schema["properties"]["contract"]
    contract.pop("$ref", None)
    contract["anyOf"] = [{"$ref": "#/$defs/Contract"}, file]
