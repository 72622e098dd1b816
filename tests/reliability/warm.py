"""Starts commands again and again and imports JAX only once: each is forked off this process.

python tests/reliability/warm.py < ORDERS

An order is a line of JSON, `{"argv": [...], "log": FILE}`. The answers are two lines: the pid of
the new process, and, when it has ended, its exit code.
"""

import json
import os
import runpy
import sys

import medcare_jax.run.job  # noqa: F401 - so that it is there after the fork


def next_order() -> dict | None:
    """In the process that is to obey it: an order. In this one: None, when there are no more."""
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            return order
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
    return None


if __name__ == "__main__" and (order := next_order()) is not None:
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(0)
    sys.argv = order["argv"]
    runpy.run_path(sys.argv[0], run_name="__main__")
