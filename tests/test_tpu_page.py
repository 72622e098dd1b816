"""What docs/tpu.md says of our own commands is there."""

import pathlib
import re
import tomllib

import pytest

from configs import base
from medcare_jax import distributed

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "tpu.md").read_text()
FLAGS = ("coordinator_address", "num_processes", "process_id", "join_timeout", "workdir")


@pytest.mark.parametrize("key", sorted(set(re.findall(r"--config\.([a-z_.]+)", PAGE))))
def test_every_key_is_one_of_the_config(key):
    found = base.get_config()
    for part in key.split("."):
        assert part in found, key
        found = found[part]


@pytest.mark.parametrize("flag", FLAGS)
def test_every_flag_of_ours_is_defined(flag):
    assert f"--{flag}" in PAGE
    sources = [ROOT / "tools" / "medcare.py", ROOT / "medcare_jax" / "run" / "cluster.py"]
    assert any(f'"{flag}"' in source.read_text() for source in sources)


def test_every_file_that_it_names_is_there():
    for name in set(re.findall(r"(?:configs|tools)/[a-z0-9_]+\.py", PAGE)):
        assert (ROOT / name).is_file(), name


def test_the_python_that_it_installs_is_one_that_this_project_runs_on():
    """The image's own is older, so one is brought, and with it the versions that were tested."""
    install = next(line for line in PAGE.splitlines() if "pip install" in line)
    found = re.search(r"uv venv .*--python (\d+\.\d+) ", install)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert found
    assert f">={found[1]}" == project["requires-python"]
    assert "--constraint constraints.txt" in install


def test_the_stated_times_are_those_of_the_code():
    assert f"heartbeat for {distributed.HEARTBEAT_SECONDS} seconds" in PAGE
