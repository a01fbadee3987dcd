from pathlib import Path

from beam_pipelines.places import list_files
from beam_pipelines.sinks.deletions import Doomed, delete_steps
from beam_pipelines.sinks.stream_ledger import stream_ledger
from tests.formats.archived import NOON
from tests.sinks.speed_lake import Speed, letters, rows


def test_a_ledger_balances_over_what_arrived_since_retention_deleted(tmp_path: Path) -> None:
    speed = Speed(tmp_path)
    writing = speed.writing()
    speed.letter_writing()
    speed.read(range(6))
    for n in range(4):
        speed.store(writing, rows([n]))
    speed.letter(letters([4]))
    speed.door([5], "filtered")
    before = stream_ledger(speed.state, speed.outputs)
    folder = writing.layout.folder
    (first, *_) = sorted(list_files(folder))
    # rows arrive at NOON + n microseconds; messages of the archive all at NOON
    list(delete_steps(speed.state, [Doomed("rows", "rows", f"{folder}/{first}", folder, 1, 1, NOON - 1)], at="x"))
    broken = stream_ledger(speed.state, speed.outputs)
    assert before.balanced
    assert not broken.balanced
    (tmp_path / "state" / "retention.json").write_text(
        (tmp_path / "state" / "retention.json").read_text().replace(str(NOON - 1), str(NOON + 10))
    )
    after = stream_ledger(speed.state, speed.outputs)
    assert after.balanced
    assert after.lines == ()
