"""Queues of a worker for Flink: no bound, small messages. That a job stands still without it is in tests/flink."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from apache_beam.runners.worker import data_plane
from apache_beam.runners.worker.data_plane import ClosableOutputStream

from beam_pipelines.runners import bundle_ends
from beam_pipelines.runners.flink import send_queue

NAMES = ("_DEFAULT_SEND_QUEUE_MAX_BYTES", "_DEFAULT_SEND_QUEUE_MAX_ELEMENTS", "_DEFAULT_SIZE_FLUSH_THRESHOLD")


@pytest.fixture(autouse=True)
def _as_beam_made_it(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a worker of Flink, also where a stream on Prism ran in this process before, after which ends wait for the answer of their bundle."""
    monkeypatch.setattr(data_plane.GrpcClientDataChannel, "_enqueue_to_send", bundle_ends._beams_enqueue)
    before, create = {name: getattr(data_plane, name) for name in NAMES}, ClosableOutputStream.create
    yield
    for name, value in before.items():
        setattr(data_plane, name, value)
    ClosableOutputStream.create = staticmethod(create)


def test_more_than_beams_bounds_is_taken_without_anybody_who_reads() -> None:
    most = data_plane._DEFAULT_SEND_QUEUE_MAX_BYTES
    send_queue.install()
    send_queue.install()
    channel = data_plane.GrpcClientDataChannel.__new__(data_plane.GrpcClientDataChannel)
    data_plane._GrpcDataChannel.__init__(channel)
    piece = bytes(most // 8)
    out = channel.output_stream("bundle", "transform")

    def give() -> None:
        for _ in range(20):  # two and a half times what fits
            out.write(piece)
            out.maybe_flush()
        out.close()

    giving = threading.Thread(target=give, daemon=True)
    giving.start()
    giving.join(60)
    assert not giving.is_alive(), "it waits for room"
    sent = 0
    messages = channel._write_outputs()
    while not (message := next(messages)).data[-1].is_last:
        sent += sum(len(data.data) for data in message.data)
    assert sent == 20 * len(piece)


def test_a_message_goes_when_it_has_a_megabyte() -> None:
    send_queue.install()
    sent: list[bytes] = []
    stream = ClosableOutputStream.create(sent.append, sent.append, 0)
    for _ in range(9):
        stream.write(bytes(send_queue.MESSAGE_BYTES // 4))
        stream.maybe_flush()
    stream.close()
    assert [len(message) * 4 // send_queue.MESSAGE_BYTES for message in sent] == [5, 4]
