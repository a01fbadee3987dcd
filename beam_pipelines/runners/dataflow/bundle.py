"""What a flex template launches: a spec, the files it is written in, and how it was meant to run. One JSON file beside the template, named by its content.

    gs://bucket/templates/flights.json                 the template, which Dataflow reads
    gs://bucket/templates/flights.spec-1f2e3d4c.json   the bundle, which our launcher reads

A template's parameters are short texts, and defaults in its metadata only fill a form; so the spec travels beside it, and the parameter `spec` says where it is.
Loads no Beam.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
from pydantic import ValidationError

from beam_pipelines.errors import SpecError
from beam_pipelines.places import read_bytes
from beam_pipelines.spec.document import Document, read_document
from beam_pipelines.spec.load import LoadedSpec, load_spec
from beam_pipelines.spec.parameters import Parameter

SPEC_FILE = "pipeline.yaml"
_SAMPLES = {"string": "sample", "path": "gs://sample-bucket/sample", "int": "1", "float": "1.0", "boolean": "true", "duration": "1h"}


class Bundle(msgspec.Struct, frozen=True):
    """A spec's text, the files it refers to by relative paths, values of parameters that were set when the template was built, and the image and mode it is for."""

    mode: Literal["batch", "stream"]
    text: str
    files: dict[str, str] = {}
    set_: dict[str, str] = msgspec.field(default_factory=dict, name="set")
    image: str | None = None
    beam_pipelines_template: int = 1

    @property
    def content(self) -> bytes:
        return msgspec.json.format(msgspec.json.encode(self)) + b"\n"

    @property
    def name(self) -> str:
        """8 hex digits of the content: a bundle is never changed, so a template that was launched before is launched the same."""
        return hashlib.sha256(self.content).hexdigest()[:8]


def bundle_of(path: str, mode: Literal["batch", "stream"], *, set_: Mapping[str, str] = {}, image: str | None = None) -> Bundle:
    """The spec in the file `path` with what it is written in. Raises SpecError where a file is not there."""
    document = _document(path)
    contract = document.value.get("contract")
    beside = contract.get("file") if isinstance(contract, dict) else None
    files = {beside: _text(os.path.join(os.path.dirname(path), beside))} if isinstance(beside, str) else {}
    if any(os.path.isabs(name) or name.startswith("..") for name in files):
        raise SpecError(
            f"{path}: contract.file: {beside}: a template takes files beside the spec along.", hint="Put it into the spec's folder."
        )
    return Bundle(mode, _text(path), files, dict(set_), image)


def modes_of(path: str) -> list[Literal["batch", "stream"]]:
    """The modes for which the spec has sources. Raises SpecError where it has none."""
    sources: Any = _document(path).value.get("sources")
    found: list[Literal["batch", "stream"]] = [mode for mode in ("batch", "stream") if isinstance(sources, dict) and sources.get(mode)]
    if not found:
        raise SpecError(f"{path}: sources needs 'batch', 'stream' or both.")
    return found


def declared(text: str, *, file: str) -> dict[str, Parameter]:
    """The parameters that a spec declares. Raises SpecErrors where the text is no YAML, SpecError where a parameter is not well declared."""
    raw = _parsed(text, file).value.get("parameters") or {}
    try:
        return {str(name): Parameter.model_validate(value, strict=True, by_alias=True, by_name=False) for name, value in raw.items()}
    except ValidationError as error:
        raise SpecError(f"{file}: parameters: {error.errors()[0]['msg']}", hint="beam-pipelines validate says where.") from None


def unpack(bundle: Bundle, folder: Path, *, set_: Mapping[str, str]) -> LoadedSpec:
    """The spec, loaded from files in `folder`; `set_` wins over what was set when the template was built. Raises SpecErrors with everything that is wrong."""
    for name, text in {**bundle.files, SPEC_FILE: bundle.text}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    return load_spec(folder / SPEC_FILE, set_={**bundle.set_, **set_})


def fetched(url: str) -> Bundle:
    """The bundle, or the bare spec, at a path or URL; a bare spec is run as its sources say. Raises SpecError where there is none."""
    content = read_bytes(url)
    if content is None:
        raise SpecError(
            f"--spec {url}: there is no such file.", hint="It is the one that `beam-pipelines template build` wrote beside the template."
        )
    try:
        return msgspec.json.decode(content, type=Bundle)
    except (msgspec.DecodeError, UnicodeDecodeError):
        text = content.decode("utf-8", "replace")
        sources: Any = _parsed(text, url).value.get("sources")
        return Bundle("batch" if isinstance(sources, dict) and sources.get("batch") else "stream", text)


def samples(parameters: Mapping[str, Parameter], set_: Mapping[str, str]) -> dict[str, str]:
    """A value for each parameter that has none yet, so that the spec can be checked. Raises SpecError where none can be made up."""
    found = {}
    for name, parameter in parameters.items():
        if name in set_ or parameter.default is not None:
            continue
        if parameter.regex is not None:
            raise SpecError(
                f"parameter '{name}': has no default and must match {parameter.regex}, so the spec cannot be checked.",
                hint=f"Say --sample {name}=VALUE.",
            )
        found[name] = parameter.choices[0] if parameter.choices else _SAMPLES[parameter.type]
    return found


def _document(path: str) -> Document:
    return _parsed(_text(path), path)


def _parsed(text: str, file: str) -> Document:
    document = read_document(text, file=file)
    if not isinstance(document.value, dict):
        raise SpecError(f"{file}: expected a mapping, key: value.")
    return document


def _text(path: str) -> str:
    try:
        return Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: cannot be read: {error}.") from None
