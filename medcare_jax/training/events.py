"""TensorBoard events of a stage, written by the thread that adds them."""

import os
import pathlib
import socket
import time
from collections.abc import Mapping

# TensorBoard may look on while a run goes on; the disk is not kept busy for that.
_SECONDS_BETWEEN_FLUSHES = 30.0


class Events:
    """A file of events.

    The writer that tensorboardX offers hands events to a thread of its own. When a disk is full
    that thread ends, and a run that goes on adding waits for it without end; here the error is
    raised.
    """

    def __init__(self, folder: pathlib.Path, *, first_step: int) -> None:
        """Begins a file; events of earlier files after `first_step` no longer count.

        Raises:
          OSError: It cannot be written.
        """
        # Imported by those who write: it takes PyTorch along, two seconds where that is installed.
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.record_writer import RecordWriter
        from tensorboardX.summary import scalar

        folder.mkdir(parents=True, exist_ok=True)
        self._event, self._scalar = Event, scalar
        # A name of its own also for a run that is started again within a second.
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}"
        self._writer = RecordWriter(str(folder / name))
        self._write(file_version="brain.Event:2")
        self._write(step=first_step + 1, session_log=SessionLog(status=SessionLog.START))
        self._flushed = time.monotonic()

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """Adds the numbers of a step by name."""
        for name, value in numbers.items():
            self._write(step=step, summary=self._scalar(name, value))
        if time.monotonic() - self._flushed > _SECONDS_BETWEEN_FLUSHES:
            self._writer.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        """Writes what is left."""
        self._writer.close()

    def _write(self, **content: object) -> None:
        event = self._event(wall_time=time.time(), **content)
        self._writer.write(event.SerializeToString())
