"""Checkpoints and exports with every kind of damage: found before use, named, and gone round."""

import pathlib
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medcare_jax.checkpoints import MANIFEST, Checkpoints
from medcare_jax.conversion.report import REPORT_NAME, write_report
from medcare_jax.run.outputs import is_exported
from tests.reliability import tiny_job
from tests.run.workdirs import write_base

# How often; the default suite does a tenth of it.
COUNTS = {"flip": 200, "truncate": 50, "delete": 50, "swap": 50}
SHARES = [0.1, pytest.param(1.0, marks=pytest.mark.slow)]
ASKED = {"weights": "of this run", "dtype": "float32"}


def damage(folder: pathlib.Path, kind: str, random: np.random.Generator) -> set[str]:
    """Changes one file of a folder, or two; returns their names."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    path = files[random.integers(len(files))]
    content = path.read_bytes()
    if kind == "flip":
        changed = bytearray(content)
        changed[random.integers(len(changed))] ^= 1 << int(random.integers(8))
        path.write_bytes(changed)
    elif kind == "truncate":
        path.write_bytes(content[: random.integers(len(content))])
    elif kind == "delete":
        path.unlink()
    else:
        others = [each for each in files if each.read_bytes() != content]
        other = others[random.integers(len(others))]
        path.write_bytes(other.read_bytes())
        other.write_bytes(content)
        return {path.name, other.name}
    return {path.name}


def make_state(value: int) -> dict[str, Any]:
    """Leaves of several shapes and dtypes."""
    key = jax.random.key(value)
    return {
        "step": jnp.asarray(value, jnp.int32),
        "learning": {name: jax.random.normal(key, (12, 5)) for name in ("gate", "up", "down")},
        "basis": jax.random.normal(key, (7, 3), jnp.bfloat16),
    }


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("kind", COUNTS)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(tmp_path, kind, share):
    with Checkpoints(tmp_path / "good", keep=3) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, make_state(step), {"seed": step})
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), make_state(1)
    )
    for seed in range(int(COUNTS[kind] * share)):
        folder = tmp_path / str(seed)
        shutil.copytree(tmp_path / "good", folder)
        touched = damage(folder / "2", kind, np.random.default_rng(seed))
        with Checkpoints(folder, keep=3) as checkpoints:
            restored = checkpoints.restore(like)
        assert restored is not None
        assert (restored.step, restored.meta) == (1, {"seed": 1}), (seed, touched)
        jax.tree.map(np.testing.assert_array_equal, restored.state, make_state(1))
        (said,) = checkpoints.rejected
        assert str(folder / "2") in said
        assert MANIFEST in touched or any(name in said for name in touched), (seed, touched, said)
        shutil.rmtree(folder)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("kind", COUNTS)
def test_a_damaged_export_is_named_and_set_aside(tmp_path, kind, share):
    good, path = write_base(tmp_path / "good"), tmp_path / "export"
    write_report(good, ASKED, {})
    for seed in range(int(COUNTS[kind] * share)):
        shutil.copytree(good, path)
        said: list[str] = []
        assert is_exported(path, ASKED, said.append)
        assert not said
        touched = damage(path, kind, np.random.default_rng(seed))
        assert not is_exported(path, ASKED, said.append), (seed, touched)
        assert not path.exists()
        assert REPORT_NAME in touched or any(name in said[0] for name in touched), (touched, said)
        assert (tmp_path / "export.rejected").is_dir()


@pytest.mark.slow
def test_the_command_goes_round_both_and_ends_with_the_same_bits(tmp_path):
    data, workdir, log = tiny_job.write_data(tmp_path / "data"), tmp_path / "run", tmp_path / "log"
    with tiny_job.warm(tmp_path / "cache") as start:
        start.start(tiny_job.arguments(data, workdir), log)
        assert start.wait() == 0, log.read_text()[-3000:]
        expected = tiny_job.outcome(workdir)
        for stage in tiny_job.STAGES:
            newest = max(
                (workdir / stage / "checkpoints").glob("[0-9]*"), key=lambda p: int(p.name)
            )
            (touched,) = damage(newest, "flip", np.random.default_rng(5))
            exported = next((workdir / "export").glob("*.safetensors"))
            content = bytearray(exported.read_bytes())
            content[-5] ^= 1
            exported.write_bytes(content)
            start.start(tiny_job.arguments(data, workdir), log)
            assert start.wait() == 0, log.read_text()[-3000:]
            said = log.read_text().replace("\n", "")
            assert f"{stage}: going on from step" in said
            assert touched in said
            assert exported.name in said
            assert tiny_job.outcome(workdir) == expected
