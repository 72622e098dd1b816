"""PEFT folders: the released library gives the live model's logits, and we read it back."""

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medcare_jax import params as trees
from medcare_jax.conversion import ConversionError, load_peft, save_huggingface, save_peft
from medcare_jax.conversion.rules import letter_sizes, projections
from medcare_jax.models.aggregators import DA_ATTENTION_COMPONENTS, DA_COMPONENTS, Components
from medcare_jax.params import ALIGNMENT, KNOWLEDGE
from medcare_jax.settings import AdapterSettings
from tests.helpers import (
    TINY,
    TINY_ADAPTERS,
    outputs_of,
    random_inputs,
    random_params,
    tiny_decoder,
)

KNOWLEDGE_ONLY = Components(attention=(KNOWLEDGE,), ffn=(KNOWLEDGE,))
SETTINGS = TINY["qwen2"]
_ALPHAS = st.sampled_from([1, 3, 8])
# PEFT 0.21 asks transformers 5 for an attribute by its old name.
PEFT_WARNING = "ignore:.is_gradient_checkpointing:FutureWarning"


def write_adapter(
    folder: pathlib.Path, components: Components, adapters: AdapterSettings = TINY_ADAPTERS
) -> dict[str, trees.Tree]:
    parts = trees.split(random_params(tiny_decoder("qwen2", components)))
    chosen = [parts[name] for name in (KNOWLEDGE, ALIGNMENT) if name in parts]
    save_peft(folder, SETTINGS, adapters, chosen, base_name="base")
    return parts


@pytest.mark.torch
@pytest.mark.filterwarnings(PEFT_WARNING)
@pytest.mark.parametrize(
    ("components", "use_rslora"),
    [(KNOWLEDGE_ONLY, True), (DA_COMPONENTS, False), (DA_ATTENTION_COMPONENTS, False)],
    ids=["knowledge", "both", "alignment-on-attention"],
)
def test_peft_gives_the_live_logits(
    tmp_path: pathlib.Path, components: Components, use_rslora: bool
) -> None:
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    adapters = dataclasses.replace(TINY_ADAPTERS, use_rslora=use_rslora)
    parts = write_adapter(tmp_path / "adapter", components, adapters)
    save_huggingface(tmp_path / "base", SETTINGS, parts["base"])
    decoder = dataclasses.replace(tiny_decoder("qwen2", components), adapters=adapters, parent=None)
    inputs = random_inputs()
    ours = outputs_of(decoder, trees.merge(parts), inputs).logits
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model = peft.PeftModel.from_pretrained(base, tmp_path / "adapter")
    with torch.no_grad():
        theirs = model(torch.tensor(np.asarray(inputs.tokens, np.int64))).logits.numpy()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)


def test_there_and_back(tmp_path: pathlib.Path) -> None:
    parts = write_adapter(tmp_path / "adapter", KNOWLEDGE_ONLY)
    tree, scales = load_peft(tmp_path / "adapter", SETTINGS)
    found, expected = trees.flatten(tree), trees.flatten(parts[KNOWLEDGE])
    assert found.keys() == expected.keys()
    for path, leaf in expected.items():
        np.testing.assert_array_equal(found[path], leaf)
    assert set(scales.values()) == {TINY_ADAPTERS.scale}


def test_two_trees_become_one_of_summed_rank(tmp_path: pathlib.Path) -> None:
    parts = write_adapter(tmp_path / "adapter", DA_COMPONENTS)
    tree, scales = load_peft(tmp_path / "adapter", SETTINGS)
    pick = lambda tree: tree["model"]["layers"]["mlp"]["up_proj"]
    np.testing.assert_array_equal(
        pick(tree)["lora_a"],
        np.concatenate([pick(parts[n])["lora_a"] for n in (KNOWLEDGE, ALIGNMENT)], axis=-1),
    )
    assert scales["model/layers/mlp/up_proj"] == TINY_ADAPTERS.scale
    assert "self_attn" not in tree["model"]["layers"]


@pytest.mark.torch
@pytest.mark.filterwarnings(PEFT_WARNING)
def test_an_adapter_that_peft_wrote(tmp_path: pathlib.Path) -> None:
    """Any rank, alpha, rsLoRA, modules and patterns."""
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    from transformers import AutoConfig, AutoModelForCausalLM

    from medcare_jax.models.families import huggingface_config

    config = huggingface_config(SETTINGS)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    lora = peft.LoraConfig(
        r=3,
        lora_alpha=5,
        use_rslora=True,
        target_modules=["q_proj", "down_proj"],
        rank_pattern={"mlp.down_proj": 2},
        alpha_pattern={"down_proj": 7},
    )
    wrapped = peft.get_peft_model(model, lora)
    for name, weight in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    wrapped.save_pretrained(tmp_path / "adapter")
    tree, scales = load_peft(tmp_path / "adapter", SETTINGS)
    layers = wrapped.base_model.model.model.layers
    for owner, module in {
        "model/layers/self_attn/q_proj": lambda layer: layer.self_attn.q_proj,
        "model/layers/mlp/down_proj": lambda layer: layer.mlp.down_proj,
    }.items():
        leaves = trees.flatten(tree)
        for number, layer in enumerate(layers):
            delta = module(layer).get_delta_weight("default").detach().numpy().T
            ours = leaves[f"{owner}/lora_a"][number] @ leaves[f"{owner}/lora_b"][number]
            np.testing.assert_allclose(scales[owner] * ours, delta, rtol=0, atol=1e-5)
    assert len(scales) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dora": True}, "use_dora = True"),
        ({"velora_config": {"scale": 2.0}}, "velora_config = "),
        ({"use_bdlora": {"nblocks": 2}}, "use_bdlora = "),
        ({"peft_type": "VERA"}, "peft_type = 'VERA'"),
        ({"init_lora_weights": "pissa_niter_16"}, "init_lora_weights = 'pissa_niter_16'"),
        ({"init_lora_weights": "OLoRA"}, "init_lora_weights = 'OLoRA'"),
        ({"init_lora_weights": "lora_ga"}, "save_pretrained converts it"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"layers_to_transform": [0]}, r"28 unexpected.*\n  \+ .*layers\.1\.mlp"),
        ({"r": 4, "rank_pattern": {}}, "of another shape"),
        ({"r": [1]}, r"adapter_config\.json: r = \[1\], expected a whole number"),
        ({"r": None}, r"adapter_config\.json: there is no field 'r'"),
        ({"lora_alpha": None}, r"adapter_config\.json: there is no field 'lora_alpha'"),
        ({"lora_alpha": 0}, r"adapter_config\.json: lora_alpha = 0, expected a number from"),
        ({"lora_alpha": 1e300}, r"adapter_config\.json: lora_alpha = 1e\+300, expected a number"),
        ({"lora_alpha": float("nan")}, r"adapter_config\.json is not JSON: NaN"),
        ({"alpha_pattern": {"up_proj": float("nan")}}, r"adapter_config\.json is not JSON: NaN"),
        ({"alpha_pattern": {"up_proj": "x"}}, r"alpha_pattern\.up_proj = 'x', expected a number"),
        ({"rank_pattern": [1]}, r"adapter_config\.json: rank_pattern = \[1\], expected an object"),
        ({"rank_pattern": {"(": 1}}, r"adapter_config\.json: rank_pattern has '.*\(.*', expected"),
        ({"use_rslora": "false"}, "use_rslora = 'false', expected true or false"),
        ({"lora_dropout": "x"}, "lora_dropout = 'x', expected a number from 0 to below 1"),
        ({"target_modules": 5}, "target_modules = 5, expected a list of texts"),
        ({"target_modules": "("}, r"adapter_config\.json: target_modules has '\(', expected"),
        ({"layers_to_transform": 1.5}, "layers_to_transform = 1.5, expected whole numbers"),
    ],
)
def test_what_is_not_plain_lora(
    tmp_path: pathlib.Path, change: dict[str, Any], message: str
) -> None:
    write_adapter(tmp_path / "adapter", KNOWLEDGE_ONLY)
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ConversionError, match=message):
        load_peft(tmp_path / "adapter", SETTINGS)


def test_an_expression_that_would_not_end(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medcare_jax.conversion.module_patterns._SECONDS", 0.5)
    write_adapter(tmp_path / "adapter", KNOWLEDGE_ONLY)
    file = tmp_path / "adapter" / "adapter_config.json"
    change = {"target_modules": r"((.|.)*(.|.)*)*\d\d"}
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ConversionError, match=r"adapter_config\.json: target_modules could not be"):
        load_peft(tmp_path / "adapter", SETTINGS)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_factors_that_are_not_finite(tmp_path: pathlib.Path, bad: float) -> None:
    factors = {"lora_a": np.ones((3, 20, 2), np.float32), "lora_b": np.ones((3, 2, 36), np.float32)}
    factors["lora_b"][1, 0, 5] = bad
    tree = {"model": {"layers": {"mlp": {"up_proj": factors}}}}
    save_peft(tmp_path / "adapter", SETTINGS, TINY_ADAPTERS, [tree])
    with pytest.raises(ConversionError, match="adapter: model/layers/mlp/up_proj/lora_b is not"):
        load_peft(tmp_path / "adapter", SETTINGS)


@pytest.mark.parametrize("begun", [True, False, None, "gaussian", "eva", "orthogonal"])
def test_ways_to_begin_that_leave_the_base_alone(tmp_path: pathlib.Path, begun: Any) -> None:
    write_adapter(tmp_path / "adapter", KNOWLEDGE_ONLY)
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"init_lora_weights": begun}))
    assert load_peft(tmp_path / "adapter", SETTINGS)[0]


def test_another_base(tmp_path: pathlib.Path) -> None:
    write_adapter(tmp_path / "adapter", DA_COMPONENTS)
    with pytest.raises(ConversionError, match="missing"):
        load_peft(tmp_path / "adapter", dataclasses.replace(SETTINGS, num_layers=5))


def test_absent_files(tmp_path: pathlib.Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"adapter_config\.json"):
        load_peft(tmp_path, SETTINGS)


def test_nothing_to_write(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ConversionError, match="no adapter to write"):
        save_peft(tmp_path / "x", SETTINGS, TINY_ADAPTERS, [{}])
    tree = {"up_proj": {"lora_a": np.ones((1, 2, 3)), "lora_b": np.ones((1, 3, 2))}}
    with pytest.raises(ConversionError, match="no projection of the base is at up_proj"):
        save_peft(tmp_path / "x", SETTINGS, TINY_ADAPTERS, [tree])
    assert list(tmp_path.iterdir()) == []


@st.composite
def lora_configs(draw: st.DrawFn) -> dict[str, Any]:
    """Any rank, alpha, rsLoRA, targets and layers, with patterns that reach single layers."""
    names = ["q_proj", "k_proj", "o_proj", "gate_proj", "down_proj"]
    targets = draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
    keys = [*targets, *(rf"layers\.{layer}\..*{name}" for layer in range(3) for name in targets)]
    patterns = {
        # Of several patterns that match, the first counts; the library's file sorts them.
        field: dict(
            sorted(draw(st.dictionaries(st.sampled_from(keys), values, max_size=3)).items())
        )
        for field, values in (("rank_pattern", st.integers(1, 4)), ("alpha_pattern", _ALPHAS))
    }
    layers = draw(st.none() | st.lists(st.integers(0, 2), min_size=1, max_size=2, unique=True))
    as_regex = rf".*\.({'|'.join(targets)})"
    return patterns | {
        "peft_type": "LORA",
        "r": draw(st.integers(1, 4)),
        "lora_alpha": draw(_ALPHAS),
        "use_rslora": draw(st.booleans()),
        "layers_to_transform": layers,
        "target_modules": targets if layers is not None or draw(st.booleans()) else as_regex,
    }


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.filterwarnings(PEFT_WARNING, "ignore:.*did not match any targeted:RuntimeWarning")
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(fields=lora_configs())
def test_any_adapter_of_the_library_has_the_librarys_deltas(
    tmp_path_factory: pytest.TempPathFactory, fields: dict[str, Any]
) -> None:
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    from transformers import AutoConfig, AutoModelForCausalLM

    from medcare_jax.models.families import huggingface_config

    folder = tmp_path_factory.mktemp("adapter")
    config = AutoConfig.for_model(**huggingface_config(SETTINGS))
    model = peft.get_peft_model(
        AutoModelForCausalLM.from_config(config),
        peft.LoraConfig(**{name: value for name, value in fields.items() if name != "peft_type"}),
    )
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    model.save_pretrained(folder)
    tree, scales = load_peft(folder, SETTINGS)
    leaves = trees.flatten(tree)
    assert {path.rpartition("/")[0] for path in leaves} == scales.keys()
    for owner, scale in scales.items():
        _, kind, name = owner.removeprefix("model/").split("/")
        for number, layer in enumerate(model.base_model.model.model.layers):
            module = getattr(getattr(layer, kind), name)
            ours = scale * leaves[f"{owner}/lora_a"][number] @ leaves[f"{owner}/lora_b"][number]
            expected = (
                module.get_delta_weight("default").detach().numpy().T
                if hasattr(module, "get_delta_weight")
                else np.zeros(ours.shape)
            )
            np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    ranks=st.lists(st.integers(1, 5), min_size=7, max_size=7),
    alpha=st.sampled_from([0.3, 1.0, 7.0]),
    use_rslora=st.booleans(),
)
def test_any_ranks_there_and_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, ranks: list[int], alpha: float, use_rslora: bool
) -> None:
    adapters = AdapterSettings(rank=3, alpha=alpha, use_rslora=use_rslora)
    random = np.random.default_rng(0)
    sizes, leaves = letter_sizes(SETTINGS), {}
    for rank, (owner, (first, second)) in zip(ranks, projections(SETTINGS).items(), strict=True):
        leaves[f"{owner}/lora_a"] = random.standard_normal((3, sizes[first], rank), np.float32)
        leaves[f"{owner}/lora_b"] = random.standard_normal((3, rank, sizes[second]), np.float32)
    folder = tmp_path_factory.mktemp("adapter") / "out"
    save_peft(folder, SETTINGS, adapters, [trees.unflatten(leaves)])
    tree, scales = load_peft(folder, SETTINGS)
    found = trees.flatten(tree)
    assert found.keys() == leaves.keys()
    for path, leaf in leaves.items():
        assert np.asarray(found[path]).tobytes() == leaf.tobytes()
    np.testing.assert_allclose(list(scales.values()), adapters.scale, rtol=1e-12)
