"""How a Dataflow job is asked for, what it is called, and the Beam options that say so. Loads no Beam."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from beam_pipelines.errors import SpecError

DATAFLOW = "DataflowRunner"
PIPELINE_LABEL, RUN_LABEL, MODE_LABEL = "beam_pipelines_pipeline", "beam_pipelines_run_id", "beam_pipelines_mode"
SPEC_LABEL = "beam_pipelines_spec"
"""Of a stream's job: the name by which `epochs.what_ran` knows what it runs."""
AT_LEAST_ONCE = "streaming_mode_at_least_once"
_NAMES = ("dataflow", "dataflowrunner")
_LABEL = re.compile(r"[a-z][a-z0-9_-]{0,62}=[a-z0-9_-]{0,63}")
_OURS = {
    "--runner": "--runner", "--streaming": "--mode", "--save_main_session": "no option of Beam's: code of yours is in the image",
    "--template_location": "beam-pipelines template build",
}  # fmt: skip


@dataclass(frozen=True)
class Dataflow:
    """A job on Dataflow. What is None is left to the service, or to Beam's own option after the `--`.

    `image` holds this package and the user's own code, for launcher and workers alike. `update` replaces the running job of the same name and takes over its
    state; where none runs it is refused, or with `or_start` a job is started. Without `wait` the call returns when the job is handed in. `graph`: a file for the job's graph; then nothing is started.
    """

    project: str | None = None
    region: str | None = None
    temp_location: str | None = None
    job_name: str | None = None
    service_account: str | None = None
    labels: tuple[str, ...] = ()
    network: str | None = None
    subnetwork: str | None = None
    public_ips: bool = True
    kms_key: str | None = None
    workers: int | None = None
    max_workers: int | None = None
    machine_type: str | None = None
    at_least_once: bool = False
    image: str | None = None
    update: bool = False
    or_start: bool = False
    wait: bool = True
    graph: str | None = None


NO_JOB = Dataflow()


def runs_on_dataflow(runner: str) -> bool:
    """Whether `--runner` means Dataflow."""
    return runner.lower() in _NAMES


def job_name(pipeline: str, mode: str, run_id: str) -> str:
    """The job's name. That of a stream is always the same: of two jobs of one name Dataflow runs one, and `update` finds the job by it.

    >>> job_name("nyc_flights", "stream", "20240501T100000Z-1f2e3d4c"), job_name("flights", "batch", "20240501T100000Z-1f2e3d4c")
    ('nyc-flights', 'flights-20240501t100000z-1f2e3d4c')
    """
    text = pipeline if mode == "stream" else f"{pipeline}-{run_id}"
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def label_value(text: str) -> str:
    """`text` as the value of a label: what labels do not take is an underscore.

    >>> label_value("20240501T100000Z-1f2e3d4c")
    '20240501t100000z-1f2e3d4c'
    """
    return re.sub(r"[^a-z0-9_-]", "_", text.lower())[:63]


def beam_flags(settings: Dataflow, flags: Sequence[str], *, pipeline: str, mode: str, run_id: str, ran: str = "") -> list[str]:
    """Beam's options for the job: ours, then `flags`, which win where both say something. `ran` as in `epochs.Start`.

    Raises SpecError for labels that Dataflow refuses.
    """
    given = {flag.partition("=")[0] for flag in flags}
    said = [
        ("--project", settings.project), ("--region", settings.region), ("--temp_location", settings.temp_location),
        ("--job_name", settings.job_name or job_name(pipeline, mode, run_id)), ("--service_account_email", settings.service_account),
        ("--network", settings.network), ("--subnetwork", settings.subnetwork), ("--dataflow_kms_key", settings.kms_key),
        ("--num_workers", settings.workers), ("--max_num_workers", settings.max_workers), ("--machine_type", settings.machine_type),
        ("--sdk_container_image", settings.image), ("--sdk_location", "container" if settings.image or "--sdk_container_image" in given else None),
    ]  # fmt: skip
    found = [f"{name}={value}" for name, value in said if value is not None and name not in given]
    found += [f"--labels={label}" for label in _labels(settings, pipeline, mode, run_id, ran)]
    found += ["--no_use_public_ips"] if not settings.public_ips else []
    found += ["--update"] if settings.update and "--update" not in given else []
    found += ["--streaming", "--enable_streaming_engine"] if mode == "stream" else []
    found += [f"--dataflow_service_options={AT_LEAST_ONCE}"] if settings.at_least_once else []
    return [*found, "--no_save_main_session", *flags]


def _labels(settings: Dataflow, pipeline: str, mode: str, run_id: str, ran: str) -> list[str]:
    check_labels(settings.labels)
    ours = {PIPELINE_LABEL: pipeline, RUN_LABEL: run_id, MODE_LABEL: mode} | ({SPEC_LABEL: ran} if ran else {})
    return [*(f"{key}={label_value(value)}" for key, value in ours.items()), *settings.labels]


def check_labels(labels: Sequence[str]) -> None:
    """Raises SpecError for a label that Dataflow refuses."""
    wrong = next((label for label in labels if not _LABEL.fullmatch(label)), None)
    if wrong is not None:
        raise SpecError(
            f"--label {wrong}: expected key=value of lower-case letters, digits, - and _, at most 63 of each; the key begins with a letter."
        )


def refuse_ours(flags: Sequence[str]) -> None:
    """Raises SpecError for Beam options of a user that would do harm. A template's launcher gets some of them from the service."""
    for flag in flags:
        name = flag.partition("=")[0]
        if name in _OURS and (name, flag) != ("--runner", f"--runner={DATAFLOW}"):
            raise SpecError(f"{name} after --: is not for you to set here.", hint=f"What it is for: {_OURS[name]}.")
