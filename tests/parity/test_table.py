"""What a failure shows: a short timeline, aligned, with what batch, stream and rules said of every message."""

from __future__ import annotations

import pytest
from hypothesis import given

from tests.parity import test_kernels
from tests.parity.budget import tried
from tests.parity.seeds import SEEDS
from tests.parity.specs import Setting, settings_of
from tests.parity.timelines import Timeline, timelines


@pytest.mark.slow
def test_a_failure_shrinks_to_a_few_messages_that_show_it() -> None:
    seed = next(seed for seed in SEEDS if seed.bug == "a stream takes every row, however late")

    @tried(20, "shrinking")
    @given(settings_of("fixed"), timelines(4, least=1))
    def law(setting: Setting, timeline: Timeline) -> None:
        test_kernels.check(setting, timeline)

    with pytest.MonkeyPatch.context() as patch:
        seed.sow(patch)
        with pytest.raises(AssertionError) as failure:
            law()
    lines = str(failure.value).splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("watermark"))
    messages = [line for line in lines[head + 1 :] if "LATE" in line]
    assert len(messages) == 1
    said = [lines[head].index(name) for name in ("batch", "stream", "rules")]
    batch, stream, rules = (messages[0][a:b].strip() for a, b in zip(said, [*said[1:], None], strict=True))
    assert (batch, stream, rules) == ("written LATE", "written", "written LATE")
    assert sum(1 for line in lines[head + 1 :] if "kind=" in line) <= 2
