"""What must be right before a spec goes to Dataflow: workers there see no disk, no environment and no port of this machine. Loads no Beam."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator, Sequence

from beam_pipelines.bigquery_service import GRPC_EMULATOR, REST_EMULATOR
from beam_pipelines.errors import SpecError
from beam_pipelines.formats.options import AvroFormat
from beam_pipelines.pubsub_service import EMULATOR
from beam_pipelines.runners.dataflow.settings import Dataflow
from beam_pipelines.spec.load import LoadedSpec
from beam_pipelines.spec.models import PipelineSpec
from beam_pipelines.spec.secrets import passwords_of, secrets_of
from beam_pipelines.spec.sources import (
    ArchiveSource,
    BigQueryTable,
    DatabaseLookup,
    DatabaseSource,
    DatabaseTable,
    FileSource,
    PubsubSource,
)

_SHIPS_CODE = ("--extra_package", "--extra_packages", "--setup_file", "--requirements_file")
_LOOPBACK = re.compile(r"(https?://)?(localhost|127\.\d+\.\d+\.\d+|\[?::1\]?)(:|/|$)")


def check_dataflow(loaded: LoadedSpec, settings: Dataflow, flags: Sequence[str], *, mode: str) -> None:
    """Raises SpecError with everything because of which the job would fail there, or do something else than asked."""
    found = problems_of(loaded, settings, flags, mode=mode)
    if found:
        shown = "\n".join(f"  {problem}" for problem in found)
        raise SpecError(f"run --runner dataflow: the job cannot run there:\n{shown}\nNothing was started.")


def problems_of(loaded: LoadedSpec | None, settings: Dataflow, flags: Sequence[str], *, mode: str) -> list[str]:
    """Everything because of which the job would fail there, or do something else than asked; without a spec, what the call alone tells."""
    found = list(_settings(settings, flags))
    if loaded is not None:
        found += [
            *_places(loaded),
            *_secrets(loaded.spec),
            *_endpoints(loaded.spec, mode),
            *_code(loaded.spec, loaded.directory, settings, flags),
        ]
    if settings.update and mode == "batch":
        found.append("--update: replaces a running stream; a batch ends by itself. Leave it out.")
    if settings.at_least_once and mode == "batch":
        found.append("--at-least-once: is a mode of streams. Leave it out.")
    return found


def _settings(settings: Dataflow, flags: Sequence[str]) -> Iterator[str]:
    for name, value in (("project", settings.project), ("region", settings.region), ("temp_location", settings.temp_location)):
        if value is None and not any(flag.partition("=")[0] == f"--{name}" for flag in flags):
            yield f"--{name.replace('_', '-')} is missing."
    temp = settings.temp_location
    if temp is not None and not re.match(r"gs://[^/]+", temp):
        yield f"--temp-location {temp}: expected gs://BUCKET/FOLDER."
    if settings.network is not None and "/" in settings.network:
        yield f"--network {settings.network}: expected the network's name; a whole path is for --subnetwork."


def paths_of(loaded: LoadedSpec) -> Iterator[tuple[str, str]]:
    """Every place of files that workers use, and where the spec names it."""
    spec = loaded.spec
    yield "state" if spec.state else "state (not given: beside the spec)", loaded.state
    for kind, sources in (("batch", spec.sources.batch), ("stream", spec.sources.stream)):
        for number, source in enumerate(sources):
            at = f"sources.{kind}[{number}]"
            if isinstance(source, FileSource):
                yield from ((f"{at}.files", path) for path in source.patterns)
            elif isinstance(source, ArchiveSource | PubsubSource) and source.archive is not None:
                yield f"{at}.archive", source.archive
            elif isinstance(source, DatabaseSource) and source.sqlite is not None:
                yield f"{at}.database", source.sqlite
            if isinstance(source.format, AvroFormat):
                files = (*([source.format.schema_file] if source.format.schema_file else []), *source.format.schemas)
                yield from ((f"{at}.format", path) for path in files)
    for name, lookup in spec.lookups.items():
        yield from ((f"lookups.{name}.files", path) for path in lookup.patterns)
        if isinstance(lookup, DatabaseLookup) and lookup.sqlite is not None:
            yield f"lookups.{name}.database", lookup.sqlite
    for number, sink in enumerate(spec.sinks):
        if sink.kind != "pubsub":
            yield f"sinks[{number}].{sink.kind}.path", sink.destination.path


def _places(loaded: LoadedSpec) -> Iterator[str]:
    local = [(at, path) for at, path in paths_of(loaded) if not path.startswith("gs://")]
    for at, path in local:
        hint = " Say state: gs://…" if at.startswith("state (") else ""
        yield f"{at}: {path}: workers see no disk of this machine; expected gs://….{hint}"


def _secrets(spec: PipelineSpec) -> Iterator[str]:
    for at, reference in (secrets_of(spec) | passwords_of(spec)).items():
        kind = reference.partition(":")[0]
        if kind != "gcp":
            what = "the environment" if kind == "env" else "the files"
            yield f"{at}: {reference}: workers do not have {what} of this machine; expected gcp:projects/P/secrets/S of Secret Manager."


def _endpoints(spec: PipelineSpec, mode: str) -> Iterator[str]:
    named = [(f"sources.stream[{n}].endpoint", source.endpoint) for n, source in enumerate(spec.sources.stream)]
    tables: list[tuple[str, object]] = [(f"sources.batch[{n}]", source) for n, source in enumerate(spec.sources.batch)]
    tables += [(f"lookups.{name}", lookup) for name, lookup in spec.lookups.items()]
    for at, table in tables:
        if isinstance(table, BigQueryTable):
            named += [(f"{at}.endpoint", table.endpoint), (f"{at}.grpc_endpoint", table.grpc_endpoint)]
        elif isinstance(table, DatabaseTable) and table.sqlite is None:
            named.append((f"{at}.database", table.place))
    for number, sink in enumerate(spec.sinks):
        if sink.pubsub is not None:
            named.append((f"sinks[{number}].pubsub.endpoint", sink.pubsub.endpoint))
        if sink.bigquery is not None:
            named.append((f"sinks[{number}].bigquery.endpoint", sink.bigquery.endpoint))
            named.append((f"sinks[{number}].bigquery.grpc_endpoint", sink.bigquery.grpc_endpoint))
    for at, endpoint in named:
        if endpoint is not None and _LOOPBACK.match(endpoint):
            yield f"{at}: {endpoint}: is this machine, which workers do not reach."
        elif endpoint is not None and at.startswith("sources.stream") and mode == "stream":
            yield f"{at}: {endpoint}: Dataflow reads Pub/Sub itself, and takes no endpoint. Leave it out."
    uses_pubsub = mode == "stream" or any(sink.pubsub for sink in spec.sinks)
    uses_bigquery = any(isinstance(table, BigQueryTable) for _, table in tables) or any(sink.bigquery for sink in spec.sinks)
    for name, uses in ((EMULATOR, uses_pubsub), (REST_EMULATOR, uses_bigquery), (GRPC_EMULATOR, uses_bigquery)):
        if uses and os.environ.get(name):
            yield f"{name} is set to {os.environ[name]}, and workers do not reach an emulator. Unset it."


def _code(spec: PipelineSpec, directory: str, settings: Dataflow, flags: Sequence[str]) -> Iterator[str]:
    shipped = {flag.partition("=")[0] for flag in flags}
    if shipped.intersection(_SHIPS_CODE):
        return
    own = spec.functions
    if settings.image is not None or "--sdk_container_image" in shipped:
        for function in own:
            if _only_beside(function.partition(":")[0], directory):
                yield f"apply: {function}: lies beside the spec, where workers do not find it. Install its package in the image, or ship it: -- --extra_package=DIST.tar.gz."
        return
    also = f" and the code of `apply: {own[0]}`" if own else ""
    yield f"--sdk-container-image is missing: workers need this package{also}. Name an image that has them, or ship packages: -- --extra_package=DIST.tar.gz."


def _only_beside(module: str, directory: str) -> bool:
    top = module.partition(".")[0]
    if not any(os.path.exists(os.path.join(directory, name)) for name in (top, f"{top}.py")):
        return False
    try:
        return importlib.util.find_spec(top) is None
    except (ImportError, ValueError):
        return True
