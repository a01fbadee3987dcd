"""A signal that asks a stream to drain."""

from __future__ import annotations

import signal
import subprocess
import sys
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


WAITS = """
import signal, sys
from beam_pipelines import draining
signal.signal(signal.SIGTERM, lambda *_: draining.request())
def interrupted(frame, event, argument):
    signal.raise_signal(signal.SIGTERM)
    return interrupted
sys.settrace(interrupted)
print(draining.wait(5.0))
"""


def test_a_signal_at_any_line_of_a_wait_ends_it() -> None:
    """Among them those at which a lock of the wait's own is held: a handler that wants it, too, waits for ever."""
    done = subprocess.run([sys.executable, "-c", WAITS], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "True\n"


def test_who_waits_hears_of_a_request_of_another_thread_and_of_none() -> None:
    draining.reset()
    assert not draining.wait(0.02)
    asked = threading.Timer(0.05, draining.request)
    asked.start()
    try:
        assert draining.wait(20)
    finally:
        asked.join()
        draining.reset()
