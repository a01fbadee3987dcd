"""A spec as a Dataflow flex template: the JSON that the service reads. Loads no Beam.

Written by ourselves: `gcloud dataflow flex-template build` drops `streaming`, `supportsAtLeastOnce` and `defaultStreamingMode`. The fields are those of `ContainerSpec` in
google.dataflow.v1beta3; `templates/flex-template.schema.json` says which of them we write.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from beam_pipelines.arrow.durations import PATTERN
from beam_pipelines.errors import SpecError
from beam_pipelines.runners.dataflow.bundle import Bundle
from beam_pipelines.runners.dataflow.settings import MODE_LABEL, PIPELINE_LABEL, Dataflow, check_labels, label_value
from beam_pipelines.spec.parameters import Parameter

_SPEC, _RUN = "Spec", "Run"
_TIME = r"^\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d)?(Z|[+-]\d\d:\d\d)?)?$"
_RUN_ID = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
_REGEX = {
    "int": r"^[+-]?\d+$",
    "float": r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$",
    "boolean": "^(true|false)$",
    "duration": PATTERN,
    "path": r"^gs://[^\n]+$",
}
_KIND = {"int": "NUMBER", "float": "NUMBER", "boolean": "BOOLEAN"}
_OURS: tuple[tuple[str, str, str, str | None, tuple[str, ...]], ...] = (
    ("mode", "Mode", "batch or stream, where it is not the one that the template was built for.", "^(batch|stream)$", ()),
    ("run_id", "Run id", "Identity of the run: running twice under one id commits once. Default: the start time and a random part.", _RUN_ID, ()),
    ("from_time", "From", "A batch computes anew what lies at or after this event time, and replaces exactly that.", _TIME, ("batch",)),
    ("to_time", "To", "The end of that range, not included. Bare dates are midnight in the spec's time zone.", _TIME, ("batch",)),
    ("input", "Input", "batch: the spec's batch sources; archive: what the stream has archived.", "^(batch|archive)$", ("batch",)),
    ("apply_lateness", "Apply lateness", "true: rows that would be too late for the stream are dead letters.", "^(true|false)$", ("batch",)),
    ("ignore_stream", "Ignore the stream", "true: take a range although windows of the stream in it are still open.", "^(true|false)$", ("batch",)),
    ("replace_running", "Replace the running job", "true, together with --update: the job goes on with the state of the running one; where none runs, one is started.", "^(true|false)$", ("stream",)),
    ("at_least_once", "At least once", "true: the streaming mode in which a message may be processed more than once.", "^(true|false)$", ("stream",)),
)  # fmt: skip
OURS = frozenset(name for name, *_ in _OURS) | {"spec"}
"""Names of the launcher's own parameters; those of the spec come beside them."""
_BEAMS = frozenset(
    "runner project region job_name temp_location staging_location template_location streaming update labels label network subnetwork machine_type num_workers "
    "max_num_workers service_account_email sdk_container_image sdk_location zone worker_zone experiments setup_file extra_package requirements_file".split()
)


def template_of(
    bundle: Bundle, parameters: Mapping[str, Parameter], *, pipeline: str, description: str, image: str, spec_url: str, settings: Dataflow
) -> dict[str, Any]:
    """The template as it is written to JSON. Raises SpecError where a parameter of the spec is called as one of ours or of Beam's."""
    _check_names(parameters)
    streaming = bundle.mode == "stream"
    modes = {
        "supportsExactlyOnce": True,
        "supportsAtLeastOnce": True,
        "defaultStreamingMode": "AT_LEAST_ONCE" if settings.at_least_once else "EXACTLY_ONCE",
    }
    return {
        "image": image,
        "sdkInfo": {"language": "PYTHON"},
        "metadata": {
            "name": f"{pipeline} ({bundle.mode})",
            "description": description or f"The pipeline {pipeline} as a {bundle.mode} job.",
            "streaming": streaming,
            **(modes if streaming else {}),
            "parameters": [
                _spec_parameter(spec_url),
                *(_declared(n, p, bundle.set_.get(n)) for n, p in parameters.items()),
                *_ours(bundle.mode),
            ],
        },
        "defaultEnvironment": _environment(bundle.mode, pipeline, image, settings),
    }


def _check_names(parameters: Mapping[str, Parameter]) -> None:
    for name in parameters:
        if name in OURS or name in _BEAMS:
            whose = "the launcher's" if name in OURS else "Beam's"
            raise SpecError(
                f"parameters.{name}: a template has {whose} option of that name too.", hint="Call the spec's parameter otherwise."
            )


def _spec_parameter(url: str) -> dict[str, Any]:
    return {
        "name": "spec", "label": "Spec", "helpText": f"What runs, written beside the template when that was built: {url}", "paramType": "GCS_READ_FILE",
        "isOptional": False, "defaultValue": url, "groupName": _SPEC,
    }  # fmt: skip


def _declared(name: str, parameter: Parameter, given: str | None) -> dict[str, Any]:
    default = given if given is not None else None if parameter.default is None else _written(parameter.default)
    found: dict[str, Any] = {
        "name": name, "label": name.replace("_", " ").replace("-", " ").capitalize(), "helpText": _help(parameter, default), "groupName": _SPEC,
        "paramType": "ENUM" if parameter.choices else _KIND.get(parameter.type, "TEXT"), "isOptional": default is not None,
    }  # fmt: skip
    regex = parameter.regex and f"^(?:{parameter.regex})$"
    if regex or parameter.type in _REGEX:
        found["regexes"] = [text for text in (regex, _REGEX.get(parameter.type)) if text]
    if parameter.choices:
        found["enumOptions"] = [{"value": choice, "label": choice} for choice in parameter.choices]
    return found if default is None else {**found, "defaultValue": default}


def _help(parameter: Parameter, default: str | None) -> str:
    what = parameter.description or f"A {parameter.type} of the spec."
    return what if default is None else f"{what.rstrip('.')}. Default: {default or 'empty'}"


def _written(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _ours(mode: str) -> list[dict[str, Any]]:
    return [
        {"name": name, "label": label, "helpText": text, "isOptional": True, "groupName": _RUN, "paramType": "BOOLEAN" if "true|false" in str(regex) else "TEXT",
         **({"regexes": [regex]} if regex else {})}
        for name, label, text, regex, modes in _OURS
        if not modes or mode in modes
    ]  # fmt: skip


def _environment(mode: str, pipeline: str, image: str, settings: Dataflow) -> dict[str, Any]:
    check_labels(settings.labels)
    labels = dict(label.split("=", 1) for label in settings.labels)
    said: dict[str, Any] = {
        "sdkContainerImage": image, "tempLocation": settings.temp_location, "serviceAccountEmail": settings.service_account, "network": settings.network,
        "subnetwork": settings.subnetwork, "kmsKeyName": settings.kms_key, "numWorkers": settings.workers, "maxWorkers": settings.max_workers,
        "machineType": settings.machine_type, "ipConfiguration": None if settings.public_ips else "WORKER_IP_PRIVATE",
        "enableStreamingEngine": True if mode == "stream" else None,
        "additionalUserLabels": {PIPELINE_LABEL: label_value(pipeline), MODE_LABEL: mode, **labels},
    }  # fmt: skip
    return {name: value for name, value in said.items() if value is not None}


def run_command(
    template_url: str, spec_url: str, bundle: Bundle, parameters: Mapping[str, Parameter], *, job: str, region: str | None
) -> str:
    """The command that launches the template, with every parameter that must be given."""
    needed = [name for name, parameter in parameters.items() if parameter.default is None and name not in bundle.set_]
    given = [f"spec={spec_url}", *(f"{name}=…" for name in needed)]
    lines = [f"gcloud dataflow flex-template run {job}", f"--template-file-gcs-location={template_url}", f"--region={region or '…'}"]
    return " \\\n    ".join([*lines, *(f"--parameters={text}" for text in given)])
