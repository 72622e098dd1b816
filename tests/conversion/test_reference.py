"""The authors' folders: read strictly, written back bit for bit, never executed."""

import dataclasses
import json
import pathlib
import shutil
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from medcare_jax import params as trees
from medcare_jax.conversion import (
    ConversionError,
    RoutersMissingError,
    load_reference,
    save_reference,
)
from medcare_jax.models.aggregators import (
    DA_ATTENTION_COMPONENTS,
    DA_COMPONENTS,
    MKA_COMPONENTS,
)
from medcare_jax.models.families import DecoderSettings
from tests.helpers import TINY, TINY_ADAPTERS, random_params, tiny_decoder

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

BIN, ADAPTER = "non_lora_trainables.bin", "adapter_model.safetensors"
GATE = "base_model.model.model.layers.0.mlp.gate_proj"


def adapter_trees(components: Any) -> dict[str, trees.Tree]:
    parts = trees.split(random_params(tiny_decoder("qwen2", components)))
    return {name: tree for name, tree in parts.items() if name != trees.BASE}


def read_bin(folder: pathlib.Path) -> dict[str, Any]:
    return dict(torch.load(folder / BIN, weights_only=True))


def check_same_trees(found: Any, expected: Any) -> None:
    found, expected = trees.flatten(found), trees.flatten(expected)
    assert found.keys() == expected.keys()
    for path, leaf in expected.items():
        np.testing.assert_array_equal(found[path], leaf, err_msg=path)


@pytest.fixture
def stage_one(tmp_path: pathlib.Path) -> pathlib.Path:
    folder = tmp_path / "one"
    save_reference(folder, TINY["qwen2"], TINY_ADAPTERS, adapter_trees(MKA_COMPONENTS))
    return folder


@pytest.fixture
def stage_two(tmp_path: pathlib.Path) -> pathlib.Path:
    folder = tmp_path / "two"
    expected = adapter_trees(DA_COMPONENTS)
    save_reference(folder, TINY["qwen2"], TINY_ADAPTERS, expected, layout="mid-run")
    return folder


def test_stage_one_there_and_back(stage_one: pathlib.Path) -> None:
    adapters, found = load_reference(stage_one, TINY["qwen2"])
    assert adapters == TINY_ADAPTERS
    check_same_trees(found, adapter_trees(MKA_COMPONENTS))


@pytest.mark.parametrize("layout", ["final", "mid-run"])
def test_stage_two_there_and_back(tmp_path: pathlib.Path, layout: Any) -> None:
    expected = adapter_trees(DA_COMPONENTS)
    save_reference(tmp_path / "x", TINY["qwen2"], TINY_ADAPTERS, expected, layout=layout)
    assert (read_bin(tmp_path / "x") == {}) == (layout == "final")
    adapters, found = load_reference(tmp_path / "x", TINY["qwen2"])
    assert adapters == TINY_ADAPTERS
    check_same_trees(found, expected)


@pytest.mark.parametrize("name", ["mka", "da", "da_final"])
def test_golden_folders_are_rewritten_bit_for_bit(
    shared: pathlib.Path, tmp_path: pathlib.Path, name: str
) -> None:
    source = shared / "golden" / name
    fields = json.loads((shared / "golden/base/config.json").read_text())
    from medcare_jax.models.families import decoder_settings

    settings = decoder_settings(fields)
    adapters, found = load_reference(source, settings)
    layout = "final" if name == "da_final" else "mid-run"
    save_reference(tmp_path / name, settings, adapters, found, layout=layout)
    for file in (ADAPTER, "model.safetensors"):
        assert (source / file).exists() == (tmp_path / name / file).exists()
        if (source / file).exists():
            check_same_bytes(
                safetensors.numpy.load_file(tmp_path / name / file),
                safetensors.numpy.load_file(source / file),
            )
    written, original = read_bin(tmp_path / name), read_bin(source)
    check_same_bytes(
        {key: value.numpy() for key, value in written.items()},
        {key: value.numpy() for key, value in original.items()},
    )
    assert list(written) == list(original)
    ours = json.loads((tmp_path / name / "config.json").read_text())
    theirs = json.loads((source / "config.json").read_text())
    for field in ("num_experts", "num_experts_per_token", "num_share_experts", "share_expert"):
        assert ours[field] == theirs[field]


def check_same_bytes(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        same = (tensor.dtype, tensor.shape, tensor.tobytes())
        assert (found[name].dtype, found[name].shape, found[name].tobytes()) == same, name


def test_experts_lie_side_by_side(stage_one: pathlib.Path) -> None:
    noise = load_reference(stage_one, TINY["qwen2"])[1]["noise"]["model"]["layers"]["mlp"]
    file, rank = read_bin(stage_one), TINY_ADAPTERS.rank
    for expert in (0, 6):
        part = slice(expert * rank, (expert + 1) * rank)
        for letter, leaf in (("A", "lora_a"), ("B", "lora_b")):
            theirs = file[f"{GATE}.experts.{expert}.lora_{letter}_{expert}.weight"].numpy().T
            ours = noise["gate_proj"][leaf][0]
            np.testing.assert_array_equal(ours[:, part] if letter == "A" else ours[part], theirs)


def test_half_precision_is_widened_exactly(stage_one: pathlib.Path) -> None:
    halves = {name: tensor.to(torch.bfloat16) for name, tensor in read_bin(stage_one).items()}
    torch.save(halves, stage_one / BIN)
    found = load_reference(stage_one, TINY["qwen2"])[1]["knowledge"]
    leaf = found["model"]["layers"]["mlp"]["gate_proj"]["lora_a"]
    theirs = halves[f"{GATE}.share_experts.lora_A.weight"].float().numpy().T
    assert leaf.dtype == np.float32
    np.testing.assert_array_equal(leaf[0], theirs)


def test_without_routers(stage_one: pathlib.Path) -> None:
    kept = {name: tensor for name, tensor in read_bin(stage_one).items() if "switch" not in name}
    torch.save(kept, stage_one / BIN)
    with pytest.raises(RoutersMissingError, match=r"no router.*mid-run.*drop_noise=True"):
        load_reference(stage_one, TINY["qwen2"])
    _, found = load_reference(stage_one, TINY["qwen2"], drop_noise=True)
    check_same_trees(found, {"knowledge": adapter_trees(MKA_COMPONENTS)["knowledge"]})


def test_some_routers_missing_are_listed(stage_one: pathlib.Path) -> None:
    kept = read_bin(stage_one)
    del kept[f"{GATE}.switch.bias"]
    torch.save(kept, stage_one / BIN)
    with pytest.raises(ConversionError, match=r"1 missing[^\n]*\n  - .*gate_proj\.switch\.bias"):
        load_reference(stage_one, TINY["qwen2"])


def test_missing_expert_and_stranger(stage_one: pathlib.Path) -> None:
    kept = read_bin(stage_one)
    kept["stranger"] = kept.pop(f"{GATE}.experts.3.lora_A_3.weight")
    torch.save(kept, stage_one / BIN)
    with pytest.raises(ConversionError, match="1 missing .*1 unexpected") as error:
        load_reference(stage_one, TINY["qwen2"])
    assert "experts.3.lora_A_3" in str(error.value)


def test_the_whole_model_beside_the_adapters(
    stage_two: pathlib.Path, make_folder: Any, tmp_path: pathlib.Path
) -> None:
    """Between steps `model.safetensors` has the base too, whether or not the `.bin` is empty."""
    tensors = {name: tensor.numpy() for name, tensor in read_bin(stage_two).items()}
    config = (stage_two / "config.json").read_text()
    make_folder(stage_two, TINY["qwen2"], shard_bytes=9000, **tensors)
    (stage_two / "config.json").write_text(config)
    for content in (read_bin(stage_two), {}):
        torch.save(content, stage_two / BIN)
        _, found = load_reference(stage_two, TINY["qwen2"])
        check_same_trees(found, adapter_trees(DA_COMPONENTS))


@pytest.mark.parametrize("change", [{"num_layers": 4}, {"hidden_size": 21}])
def test_another_base(stage_two: pathlib.Path, change: dict[str, int]) -> None:
    other: DecoderSettings = dataclasses.replace(TINY["qwen2"], **change)
    with pytest.raises(ConversionError, match="missing|of another shape"):
        load_reference(stage_two, other)


@pytest.mark.parametrize("file", [BIN, "config.json", "adapter_config.json"])
def test_an_absent_file_is_named(stage_two: pathlib.Path, file: str) -> None:
    (stage_two / file).unlink()
    with pytest.raises(FileNotFoundError, match=file):
        load_reference(stage_two, TINY["qwen2"])


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.json", {"share_expert": False}, "share_expert = False"),
        ("config.json", {"wrap_attn_orth": True}, "wrap_attn_orth = True"),
        ("config.json", {"expert_selection": "x"}, "expert_selection = 'x' .*: 'top_k'"),
        ("adapter_config.json", {"use_rslora": True}, "use_rslora = False .*: True"),
        ("adapter_config.json", {"use_dora": True}, "use_dora = True"),
        ("adapter_config.json", {"rank_pattern": {"q_proj": 3}}, "rank_pattern"),
        ("config.json", {"num_experts": "4"}, "config.json: num_experts = '4', expected a whole"),
        ("config.json", {"num_experts": 4.0}, "config.json: num_experts = 4.0, expected a whole"),
        ("config.json", {"num_experts": None}, "config.json: there is no field 'num_experts'"),
        ("config.json", {"num_experts": 10**9}, "num_experts is 1000000000, .* there are 186 in"),
        ("config.json", {"num_experts": 1}, "config.json: experts_per_token = 3 is more than"),
        ("config.json", {"use_rslora": "x"}, "use_rslora = 'x' .supported: False"),
    ],
)
def test_settings_that_are_refused(
    stage_one: pathlib.Path, file: str, change: dict[str, Any], message: str
) -> None:
    fields = json.loads((stage_one / file).read_text())
    (stage_one / file).write_text(json.dumps(fields | change))
    with pytest.raises(ConversionError, match=message):
        load_reference(stage_one, TINY["qwen2"])


def test_a_config_without_experts(stage_one: pathlib.Path) -> None:
    shutil.copy(stage_one / "adapter_config.json", stage_one / "config.json")
    with pytest.raises(ConversionError, match="config.json lacks num_experts"):
        load_reference(stage_one, TINY["qwen2"])


def test_trees_that_are_no_stage_of_the_reference(tmp_path: pathlib.Path) -> None:
    for components in (DA_ATTENTION_COMPONENTS, MKA_COMPONENTS):
        given = adapter_trees(components)
        given.pop("noise", None)
        with pytest.raises(ConversionError, match="adapters to save"):
            save_reference(tmp_path / "x", TINY["qwen2"], TINY_ADAPTERS, given)
    assert list(tmp_path.iterdir()) == []
