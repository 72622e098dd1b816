"""TensorBoard's files: framed records whose events carry step, name and value."""

import struct

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c

from medcare_jax.training import events
from medcare_jax.training.events import Events


def read(path):
    """The events of a file, with both checksums of each checked."""
    content, found = path.read_bytes(), []
    while content:
        head, (size,) = content[:8], struct.unpack("<Q", content[:8])
        body = content[12 : 12 + size]
        assert struct.unpack("<I", content[8:12])[0] == masked_crc32c(head)
        assert struct.unpack("<I", content[12 + size : 16 + size])[0] == masked_crc32c(body)
        found.append(Event.FromString(body))
        content = content[16 + size :]
    return found


def test_numbers_stand_by_step_and_name(tmp_path):
    written = Events(tmp_path, first_step=4)
    written.add(5, {"loss": 2.5, "leak": 1e-7})
    written.add(6, {"loss": 2.25})
    written.close()
    (path,) = tmp_path.glob("events.out.tfevents.*")
    version, restart, *rest = read(path)
    assert version.file_version == "brain.Event:2"
    assert (restart.step, restart.session_log.status) == (5, SessionLog.START)
    values = [(event.step, x.tag, x.simple_value) for event in rest for x in event.summary.value]
    assert values == [(5, "loss", 2.5), (5, "leak", pytest.approx(1e-7)), (6, "loss", 2.25)]


def test_somebody_may_look_on(tmp_path, monkeypatch):
    monkeypatch.setattr(events, "_SECONDS_BETWEEN_FLUSHES", 0.0)
    written = Events(tmp_path, first_step=0)
    written.add(1, {"loss": 2.5})
    (path,) = tmp_path.glob("events.out.tfevents.*")
    assert read(path)[-1].summary.value[0].tag == "loss"
    written.close()
