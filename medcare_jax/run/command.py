"""How a command of tools/ begins and ends: flags, warnings that are noise, errors on one screen."""

import re
import sys
import traceback
import warnings
from collections.abc import Callable

import jax
from absl import app, flags, logging

from medcare_jax import distributed, interrupts

_DEBUG = flags.DEFINE_bool("debug", False, "Show the whole traceback of an error.")
_STOPPED_CODE = flags.DEFINE_integer(
    "stopped_code",
    0,
    "Exit code after a saved stop that SIGTERM asked for. A scheduler that takes 0 for done needs "
    "one that it restarts on, such as 42 with XPK.",
    lower_bound=0,
    upper_bound=125,
)

_FULL = (
    "the device's memory is full. In training: raise data.accumulation, lower data.rows, set "
    "compute.remat = 'full', or cut the model more (mesh.fsdp, mesh.tensor); tools/plan.py says "
    "what fits. In evaluation: lower the batch. JAX says:"
)


def run(main: Callable[[], None]) -> None:
    """Parses flags and calls `main`.

    Exit code 0, or `--stopped_code`, when the process was told to end and has saved; 130 when
    Ctrl-C told it; 1 with a message on one screen for what the user can mend; a traceback for
    anything else, which is a defect of ours.
    """
    app.run(lambda argv: _guarded(main, argv), flags_parser=_parse_flags)


def _parse_flags(argv: list[str]) -> list[str]:
    """Parses the flags; a key that a config does not have is one line, not a traceback."""
    try:
        return flags.FLAGS(argv)
    except (AttributeError, KeyError, OSError, ValueError, flags.Error) as error:
        reason = str(error.args[0] if error.args else error).strip("'\"")
        reason = reason.replace("\\n", "\n").replace("\\'", "'")
        print(f"\n{_what_is_wrong(error, argv)}: {reason}", file=sys.stderr)
        sys.exit(1)


def _what_is_wrong(error: Exception, argv: list[str]) -> str:
    """What an error of the flags is about, by the whole name of a key if one of them is meant."""
    keys = [arg.split("=", 1)[0] for arg in argv if arg.startswith("--config.")]
    meant = [key for key in keys if re.search(rf"\\'{key.rsplit('.', 1)[1]}\\'", str(error))]
    return f"no such key, {meant[0]}" if meant else type(error).__name__


def _guarded(main: Callable[[], None], argv: list[str]) -> None:
    """Calls `main` and turns what a user can mend into a message."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; flags are written --name=value")
    logging.set_verbosity(logging.WARNING)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    try:
        main()
    except distributed.StoppedEarly as stop:
        print(f"{stop}. The same command goes on from there.", file=sys.stderr)
        sys.exit(interrupts.CODE if interrupts.came() else _STOPPED_CODE.value)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        distributed.abandon(interrupts.CODE)
        sys.exit(interrupts.CODE)
    except Exception as error:
        is_explained = _explain(error)
        distributed.abandon(1)
        if is_explained:
            sys.exit(1)
        raise


def _is_device_full(error: Exception) -> bool:
    """Whether the device has not the memory that a program or an array needs."""
    return isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)


def _explain(error: Exception) -> bool:
    """Says on one screen what a user can mend; if nobody can, shows where it happened."""
    if (loss := distributed.lost_peer(error)) is not None:
        print(f"\n{loss}", file=sys.stderr)
        return True
    if _is_device_full(error) and not _DEBUG.value:
        print(f"\n{_FULL}\n{str(error).splitlines()[0]}", file=sys.stderr)
        return True
    if isinstance(error, ValueError | OSError | ArithmeticError) and not _DEBUG.value:
        print(f"\n{type(error).__name__}: {error}", file=sys.stderr)
        return True
    if distributed.has_peers():  # then nothing is printed later: the process ends at once
        traceback.print_exception(error)
    return False
