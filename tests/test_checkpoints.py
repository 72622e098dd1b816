"""Checkpoints: bit-identical, refused when damaged, never half there."""

import json
import os
import shutil
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from medcare_jax.checkpoints import (
    MANIFEST,
    CheckpointError,
    Checkpoints,
    find_fault,
    sign,
    steps_in,
)


class State(NamedTuple):
    step: jax.Array
    learning: dict
    basis: dict


def make_state(value, sharding):
    key = jax.random.key(value)
    state = State(
        jnp.asarray(value, jnp.int32),
        {"up": {"lora_a": jax.random.normal(key, (16, 6)), "lora_b": jnp.zeros((6, 0))}},
        {"up": jax.random.normal(key, (8, 3), jnp.bfloat16)},
    )
    return jax.device_put(state, sharding)


@pytest.fixture(scope="module")
def sharding():
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(AxisType.Auto,))
    return NamedSharding(mesh, P())


def abstract(state):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def fill(folder, sharding, steps, keep=3):
    with Checkpoints(folder, keep=keep) as checkpoints:
        for step in steps:
            checkpoints.save(step, make_state(step, sharding), {"seed": step})
            checkpoints.sign_finished()


def test_round_trip_is_bit_identical(tmp_path, sharding):
    fill(tmp_path, sharding, [5])
    expected = make_state(5, sharding)
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        restored = checkpoints.restore(abstract(expected))
    assert restored.step == 5
    assert restored.meta == {"seed": 5}
    jax.tree.map(np.testing.assert_array_equal, restored.state, expected)
    assert all(leaf.sharding == sharding for leaf in jax.tree.leaves(restored.state))


def test_the_newest_are_kept(tmp_path, sharding):
    fill(tmp_path, sharding, [1, 2, 3, 4], keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3", "4"]


def test_a_save_takes_its_own_time_and_not_that_until_it_is_looked_at(tmp_path, sharding):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.seconds is None
        checkpoints.save(1, make_state(1, sharding), {})
        while checkpoints._manager.is_saving_in_progress():
            time.sleep(0.1)
        saved = time.monotonic() - checkpoints._began
        time.sleep(3.0)
        checkpoints.sign_finished()
        assert 0 < checkpoints.seconds < saved + 3.0


def test_nothing_there_is_none(tmp_path, sharding):
    with Checkpoints(tmp_path / "new", keep=1) as checkpoints:
        assert checkpoints.restore(abstract(make_state(1, sharding))) is None


def test_a_save_survives_donation(tmp_path, sharding):
    state = make_state(7, sharding)
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(7, state, {})
        jax.jit(lambda s: jax.tree.map(lambda x: x * 0, s), donate_argnums=0)(state)
        checkpoints.wait()
        restored = checkpoints.restore(abstract(make_state(7, sharding)))
    jax.tree.map(np.testing.assert_array_equal, restored.state, make_state(7, sharding))


def test_every_flipped_bit_is_noticed_and_the_previous_one_used(tmp_path, sharding):
    fill(tmp_path, sharding, [1, 2])
    files = [path for path in (tmp_path / "2").rglob("*") if path.is_file() and path.stat().st_size]
    for path in files:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        good = path.read_bytes()
        path.write_bytes(content)
        assert find_fault(tmp_path / "2") is not None, path
        path.write_bytes(good)
    assert find_fault(tmp_path / "2") is None
    files[0].write_bytes(files[0].read_bytes()[:-1])
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        restored = checkpoints.restore(abstract(make_state(1, sharding)))
    assert restored.step == 1
    assert len(checkpoints.rejected) == 1
    assert "does not match its sha256" in checkpoints.rejected[0]
    assert (tmp_path / "rejected" / "2").is_dir()


def test_what_was_set_aside_before_stays(tmp_path, sharding):
    for text in ("first", "second"):
        fill(tmp_path, sharding, [2])
        (tmp_path / "2" / "stranger").write_text(text)
        Checkpoints(tmp_path, keep=3).close()
    kept = [tmp_path / "rejected" / name / "stranger" for name in ("2", "2.2")]
    assert [path.read_text() for path in kept] == ["first", "second"]


def delete(folder):
    next(path for path in (folder / "state").rglob("*") if path.is_file()).unlink()


def link_file(folder):
    """The same bytes, but from where they can be changed after they were looked at."""
    path = next(path for path in (folder / "state").rglob("*") if path.is_file())
    path.symlink_to(path.rename(folder.parent / "elsewhere"))


def link_folder(folder):
    """tensorstore follows it; a walk over the files does not."""
    shutil.copytree(folder / "state", folder.parent / "elsewhere")
    shutil.rmtree(folder / "state")
    (folder / "state").symlink_to(folder.parent / "elsewhere")
    sign(folder)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / MANIFEST).unlink(), "never signed"),
        (delete, "is missing"),
        (lambda folder: (folder / "state/stranger").write_text("x"), "is not in the manifest"),
        (lambda folder: (folder / "state" / MANIFEST).write_text("{}"), "is not in the manifest"),
        (link_file, "is neither a file nor a folder"),
        (link_folder, "is neither a file nor a folder"),
        (lambda folder: os.mkfifo(folder / "state/pipe"), "is neither a file nor a folder"),
    ],
)
def test_what_is_not_as_it_was_signed_is_set_aside(tmp_path, sharding, damage, words):
    fill(tmp_path, sharding, [1, 2])
    damage(tmp_path / "2")
    assert words in find_fault(tmp_path / "2")
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        assert checkpoints.latest_step() == 1
        checkpoints.save(2, make_state(2, sharding), {})  # the number is free again


def test_a_checkpoint_under_another_steps_number_is_set_aside(tmp_path, sharding):
    fill(tmp_path, sharding, [1, 2])
    (tmp_path / "2").rename(tmp_path / "4")
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        assert checkpoints.latest_step() == 1
    assert "it was saved after step 2" in checkpoints.rejected[0]


@pytest.mark.parametrize("content", [None, "{", "[]", "{}"])
def test_what_was_signed_without_its_step_is_set_aside(tmp_path, sharding, content):
    fill(tmp_path, sharding, [1, 2])
    metadata = tmp_path / "2/meta/metadata"
    metadata.unlink() if content is None else metadata.write_text(content)
    sign(tmp_path / "2")
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        assert checkpoints.latest_step() == 1
    assert "does not say after which step it was saved" in checkpoints.rejected[0]


@pytest.mark.parametrize("name", ["007", "²", "3"])
def test_what_is_no_steps_folder_is_set_aside(tmp_path, sharding, name):
    fill(tmp_path / "c", sharding, [1, 2])
    if name == "3":
        (tmp_path / "c/2").rename(tmp_path / "2")
        (tmp_path / "c/3").symlink_to(tmp_path / "2")
    else:
        (tmp_path / "c/2").rename(tmp_path / "c" / name)
    with Checkpoints(tmp_path / "c", keep=3) as checkpoints:
        assert checkpoints.latest_step() == 1
    assert "expected a folder, no link" in checkpoints.rejected[0]
    assert steps_in(tmp_path / "c") == [1]


def test_another_dtype_or_shape_is_refused_not_cast(tmp_path, sharding):
    fill(tmp_path, sharding, [1])
    wanted = abstract(make_state(1, sharding))
    wanted.learning["up"]["lora_a"] = jax.ShapeDtypeStruct((16, 6), jnp.bfloat16, sharding=sharding)
    wanted.basis["down"] = wanted.basis["up"]
    with (
        Checkpoints(tmp_path, keep=3) as checkpoints,
        pytest.raises(CheckpointError, match="2 leaves differ") as error,
    ):
        checkpoints.restore(wanted)
    assert "learning.up.lora_a: expected bfloat16[16, 6], saved float32[16, 6]" in str(error.value)
    assert "basis.down: expected bfloat16[8, 3], saved nothing" in str(error.value)


def test_restore_on_another_mesh_is_bit_identical(tmp_path, sharding):
    fill(tmp_path, sharding, [3])
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    other = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            x.shape,
            x.dtype,
            sharding=NamedSharding(mesh, P("b") if x.ndim == 2 and x.shape[0] > 6 else P()),
        ),
        make_state(3, sharding),
    )
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        state = checkpoints.restore(other).state
    jax.tree.map(np.testing.assert_array_equal, state, make_state(3, sharding))
    assert state.basis["up"].sharding.spec == P("b")


def test_the_manifest_lists_every_file(tmp_path, sharding):
    fill(tmp_path, sharding, [1])
    listed = json.loads((tmp_path / "1" / "manifest.json").read_text())
    there = {
        p.relative_to(tmp_path / "1").as_posix() for p in (tmp_path / "1").rglob("*") if p.is_file()
    }
    assert there - set(listed) == {"manifest.json"}
