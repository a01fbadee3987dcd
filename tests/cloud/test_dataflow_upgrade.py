"""`upgrade` on Dataflow: what runs there is written down, a new version is judged against it, and takes over by an update or by a start, or not at all."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from msgspec.structs import replace

from beam_pipelines.cli.main import command, run_command
from beam_pipelines.errors import RunError
from beam_pipelines.runners.dataflow.job import submit
from beam_pipelines.runners.dataflow.service import HandedIn, remember
from beam_pipelines.runners.dataflow.settings import DATAFLOW, SPEC_LABEL
from beam_pipelines.runners.dataflow.starts import delivered_again
from beam_pipelines.runners.versions import versions_here
from beam_pipelines.sinks.epochs import Ran, all_starts, latest_epoch, newest_start, take_epoch, what_ran
from beam_pipelines.sinks.outputs import read_outputs
from beam_pipelines.sinks.reached import Reached, write_progress
from beam_pipelines.spec.horizon import horizon
from beam_pipelines.spec.load import LoadedSpec
from tests.cloud.dataflow_lake import call
from tests.cloud.dataflow_service import FAILED, RUNNING, DataflowService
from tests.cloud.dataflow_specs import JOB, loaded

pytestmark = pytest.mark.cloud

CHECKED = {"deduplicate:": "checks: [{name: low, expr: delay < 500}]\ndeduplicate:"}
LONGER = {"within: 2h": "within: 3h"}
MOVED = {"${lake}/by_hour": "${lake}/hours"}
RENAMED_FIELD = {"key: [flight]": "key: [at]"}
Upgrade = Callable[..., tuple[int, str, str]]


@pytest.fixture
def upgrade(service: DataflowService, lake: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Upgrade:
    """`upgrade("--dry-run", change={…})`: exit code, output and errors of the command, of the spec with texts changed."""

    def said(*words: str, change: Mapping[str, str] = {}) -> tuple[int, str, str]:
        loaded(tmp_path, change=change, lake=lake)
        job = ["--project", JOB.project, "--region", JOB.region, "--temp-location", lake.removesuffix("lake") + "tmp"]
        job += ["--sdk-container-image", JOB.image]
        beam = ["--", "--no_auth", f"--dataflow_endpoint={service.url}"]
        capsys.readouterr()
        spec = str(tmp_path / "pipeline.yaml")
        code = run_command(command, ["upgrade", spec, "--set", f"lake={lake}", "--runner", "dataflow", *map(str, job), *words, *beam])
        return code, *capsys.readouterr()

    return said


@pytest.fixture
def running(service: DataflowService, lake: str, tmp_path: Path) -> LoadedSpec:
    """The spec, whose stream runs as a job."""
    spec = loaded(tmp_path, lake=lake)
    submit(spec, call(service, lake, "stream", run_id="s1"))
    return spec


def test_a_start_writes_down_what_it_runs_and_the_job_says_it(running: LoadedSpec, service: DataflowService) -> None:
    start = all_starts(running.state)[1]
    assert what_ran(running.state, start) == Ran.of(running)
    assert service.jobs[0]["labels"][SPEC_LABEL] == start.ran
    assert start.versions == {**versions_here(), "engine": DATAFLOW}


def test_an_update_is_the_same_start_that_runs_the_new_spec(
    running: LoadedSpec, service: DataflowService, lake: str, tmp_path: Path
) -> None:
    before = all_starts(running.state)
    changed = loaded(tmp_path, change=CHECKED, lake=lake)
    submit(changed, call(service, lake, "stream", update=True))
    [(epoch, start)] = all_starts(running.state).items()
    assert (epoch, start.run_id, start.started_at) == (1, "s1", before[1].started_at)
    assert what_ran(running.state, start) == Ran.of(changed)
    assert what_ran(running.state, before[1]) == Ran.of(running)  # which the older job says it runs
    assert service.jobs[1]["labels"][SPEC_LABEL] == start.ran


def test_an_update_that_the_service_refuses_leaves_the_record_as_it_was(
    running: LoadedSpec, service: DataflowService, lake: str, tmp_path: Path
) -> None:
    service.refuse_jobs = 403
    before, outputs = all_starts(running.state), read_outputs(running.state)
    assert outputs is not None
    with pytest.raises(RunError):
        submit(loaded(tmp_path, change=CHECKED | MOVED, lake=lake), call(service, lake, "stream", update=True))
    assert all_starts(running.state) == before
    assert read_outputs(running.state) == outputs, "readers look where the job at work writes"


def test_a_version_whose_state_goes_on_takes_over_by_an_update(running: LoadedSpec, service: DataflowService, upgrade: Upgrade) -> None:
    code, out, _ = upgrade("--dry-run", change=CHECKED)
    lines = out.splitlines()
    assert (code, lines[0].startswith("upgrade flights: against start 1, run s1, since 20")) == (0, True)
    assert lines[2].split()[:4] == ["from", "now", "on", "checks.low"]
    assert lines[3] == f"takes over by an update of job flights ({service.jobs[0]['id']}): its state goes on, nothing is read again"
    assert (len(service.jobs), upgrade("--no-wait", change=CHECKED)[0]) == (1, 0)
    assert (service.jobs[1]["replaceJobId"], latest_epoch(running.state)) == (service.jobs[0]["id"], 1)
    assert upgrade("--dry-run", change=CHECKED)[1].splitlines()[1] == "nothing differs"


def test_a_version_whose_state_is_lost_is_refused_while_the_job_runs(
    running: LoadedSpec, service: DataflowService, upgrade: Upgrade
) -> None:
    code, out, err = upgrade("--no-wait", change=LONGER)
    lines = out.splitlines()
    at = next(n for n, line in enumerate(lines) if line.startswith("cannot take over by an update of job flights"))
    assert re.match(r"  deduplicate: rule: .*rows that it remembers were kept by the old rule", lines[at + 1])
    assert (code, "does not survive this spec; nothing was changed. Cancel it; once it has ended, say this again" in err) == (1, True)
    code, out, _ = upgrade("--json", "--dry-run", change=LONGER)
    said = json.loads(out)["takes_over"]
    assert (code, said["by"], said["job"]) == (1, "update", service.jobs[0]["id"])
    assert [change["what"].partition(":")[0] for change in said["breaks"]] == ["deduplicate", "deduplicate"]
    assert (len(service.jobs), latest_epoch(running.state)) == (1, 1)


def test_a_job_that_drains_takes_no_update(running: LoadedSpec, service: DataflowService, upgrade: Upgrade) -> None:
    service.jobs[0]["currentState"] = "JOB_STATE_DRAINING"
    code, out, _ = upgrade("--no-wait", change=CHECKED)
    assert (code, "  it is in JOB_STATE_DRAINING: a job that is to end takes no update" in out.splitlines()) == (1, True)
    assert len(service.jobs) == 1


def test_once_the_job_has_ended_it_takes_over_by_a_start(
    running: LoadedSpec, service: DataflowService, lake: str, tmp_path: Path, upgrade: Upgrade
) -> None:
    service.jobs[0]["currentState"] = "JOB_STATE_CANCELLED"
    reached = 1_714_564_800_000_000
    write_progress(running.state, 1, Reached(reached))
    since = reached - 2 * horizon(loaded(tmp_path, change=LONGER, lake=lake).spec) - 1_000_000  # it may have been drained: see `starts`
    code, out, _ = upgrade("--dry-run", change=LONGER)
    assert (code, f"takes over by a start: {delivered_again(since)} is read again" in out.splitlines()) == (0, True)
    said = json.loads(upgrade("--dry-run", "--json", change=LONGER)[1])
    assert said["takes_over"] == {"by": "start", "reads_again": True, "read_again_since_micros": since}
    assert len(service.jobs) == 1


def test_a_start_whose_job_the_service_refused_is_none_that_a_version_is_judged_against(
    running: LoadedSpec, service: DataflowService, lake: str, tmp_path: Path, upgrade: Upgrade
) -> None:
    service.jobs[0]["currentState"] = "JOB_STATE_CANCELLED"
    refused = HandedIn("s2", "stream", str(JOB.project), str(JOB.region), "flights")
    take_epoch(running.state, "s2", ran=Ran.of(loaded(tmp_path, change=RENAMED_FIELD, lake=lake)))
    remember(running.state, refused)
    lines = upgrade("--dry-run")[1].splitlines()
    assert (lines[0].startswith("upgrade flights: against start 1, run s1, since 20"), lines[1]) == (True, "nothing differs")
    remember(running.state, replace(refused, taken=True))
    assert upgrade("--dry-run")[1].startswith("upgrade flights: against start 2, run s2, since 20")


def test_a_first_start_that_the_service_refused_never_ran(
    service: DataflowService, lake: str, tmp_path: Path, upgrade: Upgrade, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = loaded(tmp_path, change=RENAMED_FIELD, lake=lake)
    with monkeypatch.context() as refusing:
        refusing.setattr(service, "create", lambda body: setattr(service, "refuse", 403) or {})
        with pytest.raises(RunError):
            submit(spec, call(service, lake, "stream", run_id="s1"))
    service.refuse = 0
    assert (latest_epoch(spec.state), read_outputs(spec.state)) == (1, None)
    assert upgrade("--dry-run")[1].splitlines() == [
        "upgrade flights: no stream of this state has ever started; this is its first start",
        "takes over by a start: nothing is read again",
    ]


def test_what_would_spoil_what_is_stored_is_refused_as_elsewhere(running: LoadedSpec, service: DataflowService, upgrade: Upgrade) -> None:
    code, out, err = upgrade("--no-wait", change=RENAMED_FIELD)
    assert (code, "--accept contract.key" in err) == (1, True)
    assert out.splitlines()[2].split()[:2] == ["refused", "contract.key"]
    code, _, err = upgrade("--no-wait", "--accept", "contract.key", change=RENAMED_FIELD)
    assert (code, "the state of job flights" in err) == (1, True)  # which no acceptance saves
    service.jobs[0]["currentState"] = "JOB_STATE_DRAINED"
    assert upgrade("--dry-run", "--accept", "contract.key", change=RENAMED_FIELD)[0] == 0
    assert (len(service.jobs), latest_epoch(running.state)) == (1, 1)


def test_an_update_that_the_service_turned_down_later_runs_nothing(running: LoadedSpec, service: DataflowService, upgrade: Upgrade) -> None:
    assert upgrade("--no-wait", change=CHECKED)[0] == 0
    service.jobs[0]["currentState"], service.jobs[1]["currentState"] = RUNNING, FAILED
    assert upgrade("--dry-run")[1].splitlines()[1] == "nothing differs"
    assert "versions: of that start are not known" in upgrade("--dry-run")[1]  # those written down are of the other one
    assert upgrade("--dry-run", change=CHECKED)[1].splitlines()[2].split()[:4] == ["from", "now", "on", "checks.low"]


def test_where_no_stream_has_ever_started_it_starts_it(service: DataflowService, lake: str, upgrade: Upgrade) -> None:
    code, out, _ = upgrade("--no-wait")
    assert (code, len(service.jobs), latest_epoch(f"{lake}/state")) == (0, 1, 1)
    assert out.splitlines() == [
        "upgrade flights: no stream of this state has ever started; this is its first start",
        "takes over by a start: nothing is read again",
    ]


def test_what_runs_and_was_not_written_down_goes_on_only_when_it_is_accepted(
    running: LoadedSpec, service: DataflowService, upgrade: Upgrade
) -> None:
    """As of a job that an earlier version of this package handed in; what a later start has written down, whose job there is not, is nothing against that."""
    take_epoch(running.state, "s1", ran=Ran.of(running))
    del service.jobs[0]["labels"][SPEC_LABEL]
    code, _, err = upgrade("--no-wait", change=CHECKED)
    assert (code, "--accept unknown" in err) == (1, True)
    assert upgrade("--no-wait", "--accept", "unknown", change=CHECKED)[0] == 0
    assert len(service.jobs) == 2
    newest = newest_start(running.state)
    assert newest is not None
    assert newest[1].ran == service.jobs[1]["labels"][SPEC_LABEL]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--until-idle", "5s"), "runs until it is cancelled"),
        (("--machine-type", "m", "--label", "Team=x"), "--label Team=x"),
        (("--network", "a/b"), "--subnetwork"),
        (("--results", "r.json", "--no-wait"), "no record for --json or --results"),
        (("--update",), "No such option"),
    ],
)
def test_a_wrong_call_is_refused_before_anything_is_asked(
    service: DataflowService, upgrade: Upgrade, words: tuple[str, ...], says: str
) -> None:
    code, out, err = upgrade(*words)
    assert (code, out, says in err, service.jobs) == (2, "", True, []), err


def test_a_service_that_refuses_to_say_what_runs_is_told(running: LoadedSpec, service: DataflowService, upgrade: Upgrade) -> None:
    service.refuse = 403
    code, _, err = upgrade("--dry-run")
    assert (code, "roles/dataflow.viewer" in err) == (1, True), err
