"""A real browser without a window: what it shows of a page, as markup or as a picture."""

import shutil
import subprocess

import pytest

_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-quic"),
    *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--virtual-time-budget=3000"),
)


def run_chromium(profile, *arguments):
    """The standard output of Chromium with a new profile, or a skip where there is none."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("chromium is not installed; `make browser` does it")
    command = [program, *_FLAGS, f"--user-data-dir={profile}", *arguments]
    return subprocess.run(command, check=True, capture_output=True, timeout=120).stdout.decode()


def shown(path, profile, fragment=""):
    """The page after its scripts have run, as markup."""
    return run_chromium(profile, "--dump-dom", f"{path.as_uri()}{fragment}")
