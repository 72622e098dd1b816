"""Ctrl-C, heard at once also while the main thread is deep in a compiler or waits for a device.

Python runs its signal handlers between two steps of the interpreter, which a long compilation puts
off by minutes. The operating system's signal reaches a thread of ours through a socket meanwhile.
"""

import os
import signal
import socket
import threading

CODE = 130
"""The exit code of a command that Ctrl-C ended, as shells have it."""

_heard = threading.Event()


def watch() -> None:
    """From now on the first Ctrl-C asks for a saved stop, as SIGTERM does; a second one ends.

    Call it from the main thread.
    """
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGINT, lambda number, frame: None)
    # The thread keeps both ends: a socket that nobody holds is closed.
    threading.Thread(target=_listen, args=(ours, theirs), name="interrupts", daemon=True).start()


def came() -> bool:
    """Whether Ctrl-C was pressed since `watch` was called.

    >>> came()
    False
    """
    return _heard.is_set()


def _listen(ours: socket.socket, theirs: socket.socket) -> None:
    """Acts on each signal as it comes."""
    while number := ours.recv(1):
        if number[0] != signal.SIGINT:
            continue
        if _heard.is_set():
            _say("interrupted; the same command goes on from the last checkpoint")
            os._exit(CODE)  # without Python's own way out, which a compiler may be in the middle of
        _heard.set()
        _say("stopping as soon as all is saved; press Ctrl-C again to end at once")
        os.kill(os.getpid(), signal.SIGTERM)


def _say(text: str) -> None:
    """A line of its own on the standard error stream."""
    os.write(2, f"\n{text}\n".encode())
