"""A signal that asks a stream to drain."""

from __future__ import annotations

import signal
import threading

from beam_pipelines import draining
from beam_pipelines.runners.stream import _draining_signals


def test_a_signal_in_the_middle_of_a_line_is_answered_when_the_line_is_through() -> None:
    """A handler that writes to the stream it has interrupted is refused by Python: `reentrant call`."""
    said, heard, lines = list[str](), threading.Event(), threading.Lock()

    def say(text: str) -> None:
        if not lines.acquire(blocking=threading.current_thread() is not threading.main_thread()):
            raise RuntimeError("reentrant call inside <_io.BufferedWriter name='<stderr>'>")
        lines.release()
        said.append(text)
        heard.set()

    draining.reset()
    try:
        with _draining_signals(say):
            with lines:  # a line is being said
                signal.raise_signal(signal.SIGTERM)
                assert draining.requested()
                assert said == []
            assert heard.wait(10)
    finally:
        draining.reset()
    assert [text.partition(":")[0] for text in said] == ["draining"]
