"""Kinds are recognised by what lies there; parts are chosen by name."""

import dataclasses
import pathlib

import numpy as np
import pytest

from medcare_jax.conversion.sources import (
    ATTENTION,
    KINDS,
    Source,
    StreamedBase,
    halves,
    in_background,
    open_source,
    recognise,
)
from medcare_jax.conversion.tensors import ConversionError
from medcare_jax.models.aggregators import MKA_COMPONENTS
from medcare_jax.params import ALIGNMENT, KNOWLEDGE, NOISE, flatten, split
from tests.helpers import TINY, TINY_ADAPTERS, random_params, tiny_decoder


@pytest.fixture
def source() -> Source:
    parts = split(random_params(tiny_decoder("qwen2", MKA_COMPONENTS)))
    done = in_background(lambda: "digest")
    base = StreamedBase("base", TINY["qwen2"], {}, None, {}, done)
    trees = halves(parts[KNOWLEDGE]) | {NOISE: parts[NOISE]}
    return Source("reference", "mka", base, trees, TINY_ADAPTERS)


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        ({"non_lora_trainables.bin": "", "adapter_config.json": "{}", "config.json": "{}"}, 0),
        ({"adapter_config.json": "{}"}, 1),
        ({"config.json": '{"model_type": "llama"}'}, 2),
        ({"config.json": '{"adapters": {}}'}, 3),
    ],
)
def test_folders(tmp_path: pathlib.Path, files: dict[str, str], kind: int) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert recognise(tmp_path) == ("reference", "peft", "huggingface", "run")[kind]


def test_other_paths(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"")
    assert recognise(tmp_path / "a.gguf") == "gguf"
    with pytest.raises(ConversionError, match="is of no known kind: expected a .gguf file"):
        recognise(tmp_path)
    with pytest.raises(FileNotFoundError, match="is not there"):
        recognise(tmp_path / "b")
    with pytest.raises(ConversionError, match="name their base with --base"):
        open_source(tmp_path, "peft", None)


def test_every_target_of_the_table() -> None:
    """The table of issue and documentation, spelt out."""
    assert KINDS == {
        "huggingface": ("huggingface", "checkpoint"),
        "gguf": ("huggingface", "checkpoint"),
        "run": ("huggingface", "peft", "reference"),
        "reference": ("huggingface", "peft", "checkpoint"),
        "peft": ("huggingface", "checkpoint"),
    }


def test_parts_are_kept_by_name(source: Source) -> None:
    assert list(source.parts) == [ATTENTION, KNOWLEDGE, NOISE]
    assert list(source.keep((), is_mixture_possible=False).parts) == [ATTENTION, KNOWLEDGE]
    assert list(source.keep((), is_mixture_possible=True).parts) == [ATTENTION, KNOWLEDGE, NOISE]
    chosen = source.keep((KNOWLEDGE, ATTENTION), is_mixture_possible=False)
    assert list(chosen.parts) == [ATTENTION, KNOWLEDGE]
    with pytest.raises(ConversionError, match=r"has no alignment; it has attention, knowledge, n"):
        source.keep((ALIGNMENT,), is_mixture_possible=True)
    with pytest.raises(ConversionError, match="a mixture cannot be folded"):
        source.keep((NOISE,), is_mixture_possible=False)


def test_attention_and_knowledge_are_one_component_again(source: Source) -> None:
    components = source.components()
    assert components.keys() == {KNOWLEDGE, NOISE}
    both = flatten(components[KNOWLEDGE])
    assert both.keys() == {
        path for part in (ATTENTION, KNOWLEDGE) for path in flatten(source.parts[part])
    }
    merged = dataclasses.replace(source, is_merged=True)
    assert not any("self_attn" in path for path in flatten(merged.components()[KNOWLEDGE]))


def test_deltas_have_the_scale_of_their_projection(source: Source) -> None:
    deltas = source.deltas([ATTENTION])
    assert len(deltas) == 4
    assert {delta.scale for found in deltas.values() for delta in found} == {TINY_ADAPTERS.scale}
    scales = {owner: float(number) for number, owner in enumerate(deltas)}
    own = dataclasses.replace(source, scales=scales).deltas([ATTENTION])
    assert {owner: found[0].scale for owner, found in own.items()} == scales
    assert np.asarray(own[next(iter(own))][0].lora_a).dtype == np.float32


def test_what_fails_in_the_background_is_raised_where_it_is_needed() -> None:
    def fail() -> str:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        in_background(fail).result()
