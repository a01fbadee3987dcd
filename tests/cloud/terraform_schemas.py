"""Writes the schemas of Google's Terraform providers as JSON, from the Python bindings that are generated from them.

    python tests/cloud/terraform_schemas.py FOLDER_OF_WHEELS FOLDER

The providers themselves come from a registry that a test machine may not reach; `cdktf-cdktf-provider-google` and `-google-beta` are on PyPI, and
the arguments of their classes are the providers' schemas. `FOLDER/google.json` and `FOLDER/google-beta.json` hold, per resource and data source:

    {"name": {"type": "string", "required": true}, "labels": {"type": ["map", "string"]}, "url": {"type": "string", "computed": true},
     "versioning": {"block": {"enabled": {...}}, "many": false}}

What the bindings do not say: whether a list is a set, which optional attributes the service fills in, and what the provider checks in Go code.
"""

from __future__ import annotations

import ast
import json
import re
import sys
import zipfile
from pathlib import Path
from typing import Any

VERSION = "6.50.0"  # of the providers: what the two wheels below were generated from
WHEELS = {
    "google": "cdktf_cdktf_provider_google-16.12.1-py3-none-any.whl",
    "google-beta": "cdktf_cdktf_provider_google_beta-16.12.1-py3-none-any.whl",
}
RESOURCES = {
    "google": """
        google_artifact_registry_repository_iam_member google_bigquery_dataset google_bigquery_dataset_iam_member google_bigquery_table
        google_cloud_scheduler_job google_compute_firewall google_compute_network google_compute_subnetwork google_kms_crypto_key_iam_member
        google_monitoring_alert_policy google_monitoring_notification_channel google_project_iam_member google_project_service google_pubsub_subscription
        google_pubsub_subscription_iam_member google_pubsub_topic google_pubsub_topic_iam_member google_secret_manager_secret_iam_member
        google_service_account google_service_account_iam_member google_storage_bucket google_storage_bucket_iam_member
    """,
    "google-beta": "google_dataflow_flex_template_job google_project_service_identity",
}
DATA = {"google": "google_bigquery_default_service_account google_project google_storage_project_service_account", "google-beta": ""}
# Arguments of every class of the bindings that belong to Terraform's language, not to the schema.
_META = {"connection", "count", "depends_on", "for_each", "lifecycle", "provider", "provisioners"}
_SCALARS = {"builtins.bool": "bool", "jsii.Number": "number", "builtins.str": "string"}

Schema = dict[str, dict[str, Any]]


def schemas_of(provider: str, wheel: Path) -> dict[str, dict[str, Schema]]:
    """All schemas of one provider: `resources` and `data`, each by name."""
    with zipfile.ZipFile(wheel) as archive:
        return {
            "resources": {name: _schema(archive, _module(provider, name)) for name in RESOURCES[provider].split()},
            "data": {name: _schema(archive, f"data_{name}") for name in DATA[provider].split()},
        }


def _module(provider: str, name: str) -> str:
    """Where a resource is: the bindings of google-beta keep the prefix, those of google do not."""
    return name if provider == "google-beta" else name.removeprefix("google_")


def _schema(archive: zipfile.ZipFile, module: str) -> Schema:
    package = archive.namelist()[0].split("/")[0]
    tree = ast.parse(archive.read(f"{package}/{module}/__init__.py"))
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    config = next(
        c for c in classes.values() if c.name.endswith("Config") and any("TerraformMetaArguments" in ast.unparse(b) for b in c.bases)
    )
    arguments = _arguments(config, classes)
    written = {name: schema for name, schema in arguments.items() if name not in _META}
    return {**_computed(classes[config.name.removesuffix("Config")], set(arguments)), **written}


def _arguments(config: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> Schema:
    """What may be written in the block that `config` stands for."""
    init = next((n for n in config.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
    if init is None:  # a block without arguments
        return {}
    pairs = zip(init.args.kwonlyargs, init.args.kw_defaults, strict=True)
    return {a.arg.rstrip("_"): _argument(ast.unparse(a.annotation), default is None, classes) for a, default in pairs if a.annotation}


def _argument(annotation: str, required: bool, classes: dict[str, ast.ClassDef]) -> dict[str, Any]:
    need = {"required": True} if required else {}
    block = re.search(r"'?(\w+)'?, typing\.Dict\[builtins\.str, typing\.Any\]", annotation)
    if block and block[1] in classes:
        return {"block": _arguments(classes[block[1]], classes), "many": "Sequence" in annotation, **need}
    return {"type": _type(annotation), **need}


def _type(annotation: str) -> str | list[str]:
    for collection in ("Mapping", "Sequence"):
        if collection in annotation:
            return ["map" if collection == "Mapping" else "list", "number" if "jsii.Number" in annotation else "string"]
    return next((name for python, name in _SCALARS.items() if python in annotation), "string")


def _computed(resource: ast.ClassDef, known: set[str]) -> Schema:
    """What only the service knows: properties that are no arguments."""
    found: Schema = {}
    returned = {
        "builtins.str": "string",
        "jsii.Number": "number",
        "typing.List[builtins.str]": ["list", "string"],
        "_cdktf_9a9027ec.StringMap": ["map", "string"],
    }
    for node in resource.body:
        if (
            isinstance(node, ast.FunctionDef)
            and any("property" in ast.unparse(d) for d in node.decorator_list)
            and node.returns is not None
        ):
            kind = returned.get(ast.unparse(node.returns))
            if kind and node.name not in known and not node.name.endswith("_input") and node.name.islower():
                found[node.name] = {"type": kind, "computed": True}
    return found


def main(wheels: Path, target: Path) -> None:
    for provider, wheel in WHEELS.items():
        written = json.dumps(schemas_of(provider, wheels / wheel), indent=1, sort_keys=True)
        (target / f"{provider}.json").write_text(written, "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
