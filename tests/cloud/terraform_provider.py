"""Google's Terraform providers as far as `validate` and `test` with `mock_provider` need them: their schemas, nothing behind.

    python terraform_provider.py google SCHEMAS.json

Terraform starts it (see install_terraform_stub.sh) and asks for the schemas that terraform_schemas.py wrote; it then refuses unknown, missing and
mistyped arguments by itself. Plan and apply of a test are Terraform's own mocks. Nothing here talks to Google, and applying for real makes nothing.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tf import schema, types  # type: ignore[import-not-found]  # of the stub's own environment
from tf.gen import tfplugin_pb2  # type: ignore[import-not-found]
from tf.runner import run_provider  # type: ignore[import-not-found]

# The library knows sets and single blocks; Google's nested blocks are lists, which a test may index.
schema.NestedBlock._mode_map["list"] = tfplugin_pb2.Schema.NestedBlock.NestingMode.LIST
_SCALARS = {"string": types.String, "number": types.Number, "bool": types.Bool}
_COLLECTIONS = {"list": types.List, "map": types.Map}
_SETTINGS = "project region zone credentials impersonate_service_account billing_project"


class Stub:
    """One provider: `google` or `google-beta`."""

    def __init__(self, name: str, schemas: dict[str, Any]) -> None:
        self._name, self._schemas = name, schemas

    def get_model_prefix(self) -> str:
        return "google_"

    def full_name(self) -> str:
        return f"registry.terraform.io/hashicorp/{self._name}"

    def get_provider_schema(self, diagnostics: Any) -> schema.Schema:
        texts = [schema.Attribute(name, types.String(), optional=True) for name in _SETTINGS.split()]
        override = schema.Attribute("user_project_override", types.Bool(), optional=True)
        return schema.Schema([*texts, override, schema.Attribute("default_labels", types.Map(types.String()), optional=True)])

    def validate_config(self, diagnostics: Any, config: Any) -> None:
        pass

    def configure_provider(self, diagnostics: Any, config: Any) -> None:
        pass

    def get_resources(self) -> list[type]:
        return [_kind(name, found) for name, found in self._schemas["resources"].items()]

    def get_data_sources(self) -> list[type]:
        return [_kind(name, found) for name, found in self._schemas["data"].items()]

    def get_functions(self) -> list[type]:
        return []

    def new_resource(self, kind: type) -> Any:
        return kind(self)

    new_data_source = new_function = new_resource


def _kind(name: str, found: dict[str, Any]) -> type:
    """A resource or data source that has this schema and keeps what it is told."""
    attributes, blocks = _parts(found)

    class Kind:
        def __init__(self, provider: Stub) -> None:
            pass

        @classmethod
        def get_name(cls) -> str:
            return name.removeprefix("google_")

        @classmethod
        def get_schema(cls) -> schema.Schema:
            return schema.Schema(attributes=attributes, block_types=blocks, version=0)

        def validate(self, diagnostics: Any, type_name: str, config: Any) -> None:
            pass

        def create(self, context: Any, planned: Any) -> Any:
            return planned

        def read(self, context: Any, current: Any) -> Any:
            return current

        def plan(self, context: Any, current: Any, planned: Any) -> Any:
            return planned

        update = plan

        def upgrade(self, context: Any, version: int, old: Any) -> Any:
            return old

        def delete(self, context: Any, current: Any) -> None:
            pass

    return Kind


def _parts(found: dict[str, Any]) -> tuple[list[schema.Attribute], list[schema.NestedBlock]]:
    """Attributes and nested blocks."""
    attributes = [_attribute(name, part) for name, part in found.items() if "type" in part]
    return attributes, [_block(name, part) for name, part in found.items() if "block" in part]


def _attribute(name: str, part: dict[str, Any]) -> schema.Attribute:
    """`id` alone is written and computed: an argument that is left out is then null in a plan, which a test may ask for."""
    required, computed = part.get("required", False), part.get("computed", False)
    return schema.Attribute(
        name, _type(part["type"]), required=required, optional=not required and not computed, computed=computed or name == "id"
    )


def _block(name: str, part: dict[str, Any]) -> schema.NestedBlock:
    attributes, blocks = _parts(part["block"])
    least, most = 1 if part.get("required") else None, None if part["many"] else 1
    inner = schema.Block(attributes=attributes, block_types=blocks)
    return schema.NestedBlock(type_name=name, nesting_mode="list", block=inner, min_items=least, max_items=most)


def _type(kind: str | list[str]) -> types.TfType:
    return _SCALARS[kind]() if isinstance(kind, str) else _COLLECTIONS[kind[0]](_SCALARS[kind[1]]())


if __name__ == "__main__":
    provider, schemas = sys.argv[1:3]
    run_provider(Stub(provider, json.loads(Path(schemas).read_text("utf-8"))), sys.argv[:1])
