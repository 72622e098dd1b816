"""Files with damage of any kind: read as they are or refused with their name, never a crash."""

import pathlib
import resource
import shutil
from collections.abc import Callable, Iterator

import jax.numpy as jnp
import numpy as np
import pytest

from medcare_jax.checkpoints import MANIFEST, Checkpoints, find_fault
from medcare_jax.conversion import safetensors
from medcare_jax.conversion.huggingface import open_base
from medcare_jax.conversion.synthetic import write_model
from medcare_jax.conversion.tensors import ConversionError, LazyTensor
from medcare_jax.conversion.torch_files import read_bin
from medcare_jax.models.families import UnsupportedModelError
from tests.conversion.test_gguf import wide, write_gguf
from tests.helpers import TINY

# 4 formats: 5,000 mutations in all; the default suite tries a sample of the same sequence.
SAMPLE, ALL = 40, 1250
MOST_MEBIBYTES = 256
COUNTS = [SAMPLE, pytest.param(ALL, marks=pytest.mark.slow)]


# How a place in a file may change, given what is written there: its bytes before and after.
CHANGES: dict[str, Callable[[bytes, bytes, bytes], bytes]] = {
    "cut off": lambda before, new, after: before,
    "left out": lambda before, new, after: before + after[len(new) :],
    "pushed in": lambda before, new, after: before + new + after,
    "overwritten": lambda before, new, after: before + new + after[len(new) :],
    "twice": lambda before, new, after: before + after[: len(new)] + after,
    "one bit": lambda before, new, after: (
        before + bytes([after[0] ^ (1 << new[0] % 8) if after else 0]) + after[1:]
    ),
    # Numbers that claim exabytes, and the greatest of texts.
    "exabytes": lambda before, new, after: before + b"\xff\xff\xff\xff\xff\xff\xff\x7f" + after[8:],
    "nines": lambda before, new, after: before + b"9" * len(new) + after[len(new) :],
}


def mutate(content: bytes, random: np.random.Generator, head: int) -> bytes:
    """The content with one to three changes, half of them in its first `head` bytes."""
    for _ in range(random.integers(1, 4)):
        end = len(content) if random.random() < 0.5 else min(head, len(content))
        at = int(random.integers(0, max(end, 1)))
        new = random.bytes(int(random.choice([1, 2, 4, 8, 64])))
        content = CHANGES[random.choice(list(CHANGES))](content[:at], new, content[at:])
    return content


def mutants(path: pathlib.Path, count: int, head: int) -> Iterator[int]:
    """Overwrites a file with one mutant after the other."""
    good = path.read_bytes()
    for seed in range(count):
        path.unlink()  # a new file: what was mapped from the last one may still be in use
        path.write_bytes(mutate(good, np.random.default_rng(seed), head))
        yield seed


def check(read: Callable[[], dict[str, LazyTensor]], name: str, seed: int) -> bool:
    """Whether it was refused; what was read must have the shapes that it says."""
    try:
        for tensor in read().values():
            assert tensor[...].shape == tensor.shape
    except (ConversionError, UnsupportedModelError, FileNotFoundError) as error:
        said = str(error)
    except Exception as error:
        raise AssertionError(f"mutant {seed} of {name}: {type(error).__name__}") from error
    else:
        return False
    assert name in said, f"mutant {seed}: {said}"
    return True


@pytest.fixture(autouse=True)
def memory() -> Iterator[None]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < MOST_MEBIBYTES


@pytest.mark.parametrize("count", COUNTS)
def test_safetensors(tmp_path: pathlib.Path, count: int) -> None:
    folder = tmp_path / "model"
    write_model(folder, TINY["llama"])
    path = folder / "model.safetensors"
    refused = [
        check(lambda: open_base(folder)[1], path.name, seed)
        for seed in mutants(path, count, head=3000)
    ]
    assert sum(refused) > count // 4
    assert {path.name for path in tmp_path.rglob("*")} == {"model", "config.json", path.name}


@pytest.mark.parametrize("count", COUNTS)
def test_gguf(tmp_path: pathlib.Path, count: int) -> None:
    settings = wide("qwen2", num_layers=1)
    write_model(tmp_path / "base", settings)
    found = safetensors.read_folder(tmp_path / "base")
    tensors = {name: tensor[...].astype(np.float32) for name, tensor in found.items()}
    path = tmp_path / "model.gguf"
    write_gguf(path, settings, tensors)
    refused = [
        check(lambda: open_base(path)[1], path.name, seed)
        for seed in mutants(path, count, head=1500)
    ]
    assert sum(refused) > count // 4


@pytest.mark.torch
@pytest.mark.parametrize("count", COUNTS)
def test_bins(tmp_path: pathlib.Path, count: int) -> None:
    torch = pytest.importorskip("torch")
    path = tmp_path / "non_lora_trainables.bin"
    torch.save({f"a.{n}": torch.arange(5.0 + n) for n in range(4)}, path)
    refused = [
        check(lambda: read_bin(path), path.name, seed) for seed in mutants(path, count, head=1000)
    ]
    assert sum(refused) > count // 4


@pytest.mark.parametrize("count", COUNTS)
def test_orbax_folders(tmp_path: pathlib.Path, count: int) -> None:
    """Every change is found before orbax opens anything."""
    with Checkpoints(tmp_path / "made", keep=1) as checkpoints:
        checkpoints.save(1, {"learning": {"lora_a": jnp.arange(60.0).reshape(6, 10)}}, {"seed": 1})
    folder = tmp_path / "made" / "1"
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    assert find_fault(folder) is None
    for seed in range(count):
        path = files[seed % len(files)]
        good = path.read_bytes()
        changed = mutate(good, np.random.default_rng(seed), head=500)
        path.write_bytes(changed)
        is_found = find_fault(folder) is not None
        # Of its own table, that it says the same: spaces between its words are no damage.
        assert is_found or changed == good or path.name == MANIFEST, f"mutant {seed} of {path.name}"
        path.write_bytes(good)
    shutil.rmtree(folder)
