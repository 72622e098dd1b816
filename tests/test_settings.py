"""Every rule of the settings, and what its message says."""

import dataclasses

import pytest

from configs import base
from medcare_jax.settings import (
    AdapterSettings,
    ConstraintSettings,
    MeshSettings,
    Settings,
    SettingsError,
    StageSettings,
    make_settings,
)


@pytest.fixture
def config():
    """The base config with a model named, as a plain dict that may be misspelt."""
    plain = base.get_config().to_dict()
    plain["base"]["path"] = "some/folder"
    return plain


def changed(config, key, value):
    """The config with one dotted key set."""
    *sections, name = key.split(".")
    part = config
    for section in sections:
        part = part[section]
    part[name] = value
    return config


RULES = [
    ("base.path", None, "base.path is not set; name a Hugging Face folder, a .gguf file or"),
    ("base.path", "", "base.path is not set"),
    ("base.dtype", "int8", "base.dtype = 'int8'; allowed are float32, bfloat16, float16"),
    ("compute.dtype", "fp32", "compute.dtype = 'fp32'; allowed are float32"),
    ("compute.adapter_dtype", "bf16", "compute.adapter_dtype = 'bf16'; allowed are"),
    (
        "compute.remat",
        "some",
        "compute.remat = 'some'; allowed are full, attention, qkv, ffn, products, none",
    ),
    (
        "compute.attention",
        "flash",
        "compute.attention = 'flash'; allowed are auto, xla, blocks, cudnn, splash",
    ),
    ("compute.loss_chunk", 0, "compute.loss_chunk = 0; must be at least 1"),
    ("mesh.data", 0, "mesh.data, fsdp, tensor = (0, -1, 1); each at least 1, and at most one -1"),
    ("mesh.tensor", -1, "mesh.data, fsdp, tensor = (1, -1, -1)"),
    ("mesh.fsdp", -2, "mesh.data, fsdp, tensor = (1, -2, 1)"),
    ("mesh.replicated_budget_mib", -1, "mesh.replicated_budget_mib = -1.0; must be at least 0"),
    ("adapters.rank", 0, "adapters.rank = 0; must be at least 1"),
    ("adapters.alpha", 0, "adapters.alpha = 0.0; must be above 0"),
    ("adapters.shared_experts", 0, "adapters.shared_experts = 0; must be at least 1"),
    ("adapters.experts", 0, "adapters.experts = 0; must be at least 1"),
    ("adapters.experts_per_token", 0, "adapters.experts_per_token = 0; must be at least 1"),
    ("adapters.experts_per_token", 9, "experts_per_token = 9 is more than experts = 8"),
    ("adapters.dropout", 1.0, "adapters.dropout = 1.0; must be in [0, 1)"),
    ("adapters.dropout", -0.1, "adapters.dropout = -0.1; must be in [0, 1)"),
    ("data.row_length", 1, "data.row_length = 1; must be at least 2"),
    ("data.rows", 0, "data.rows = 0; must be at least 1"),
    ("data.accumulation", 0, "data.accumulation = 0; must be at least 1"),
    ("data.accumulation", 3, "data.rows = 128 is not a multiple of accumulation = 3"),
    ("data.targets", "all", "data.targets = 'all'; allowed are assistant, reference"),
    ("data.over_long", "wrap", "data.over_long = 'wrap'; allowed are drop, cut"),
    ("data.on_bad_record", "ask", "data.on_bad_record = 'ask'; allowed are stop, skip"),
    ("icd10.test", -1, "icd10.test = -1; must be at least 0"),
    ("mka.epochs", 0, "mka.epochs = 0; must be at least 1"),
    ("da.epochs", 0, "da.epochs = 0; must be at least 1"),
    ("da.max_steps", -1, "da.max_steps = -1; must be at least 0"),
    ("mka.learning_rate", -1e-4, "mka.learning_rate = -0.0001; must be at least 0"),
    ("mka.learning_rate", float("nan"), "mka.learning_rate = nan; must be"),
    ("da.clip_norm", float("inf"), "da.clip_norm = inf; must be"),
    ("adapters.alpha", float("nan"), "adapters.alpha = nan; must be"),
    ("constraint.penalty_weight", float("nan"), "penalty_weight = nan; must be"),
    ("mka.weights", [float("nan")], "mka.weights = nan; must be"),
    ("mka.weight_decay", -1, "mka.weight_decay = -1.0; must be at least 0"),
    ("mka.clip_norm", -1, "mka.clip_norm = -1.0; must be at least 0"),
    ("mka.warmup_share", 1.5, "mka.warmup_share = 1.5; must be in [0, 1]"),
    ("mka.adam_b1", 1.0, "mka.adam_b1 = 1.0; must be in [0, 1)"),
    ("da.adam_b2", 1.0, "da.adam_b2 = 1.0; must be in [0, 1)"),
    ("mka.weights", [1.0], "mka.weights has 1 entries for 0 files; one for each"),
    ("mka.weights", [0], "mka.weights = 0.0; must be above 0"),
    ("constraint.kind", "hard", "allowed are projection, penalty, projection+penalty, none"),
    ("constraint.tolerance", 0, "constraint.tolerance = 0.0; must be above 0"),
    ("checkpoint.every_steps", 0, "checkpoint.every_steps = 0; must be at least 1"),
    ("checkpoint.keep", 1, "checkpoint.keep = 1; must be at least 2"),
    ("evaluation.limit", -1, "evaluation.limit = -1; must be at least 0"),
    ("evaluation.batch", 0, "evaluation.batch = 0; must be at least 1"),
    ("evaluation.max_new_tokens", 0, "evaluation.max_new_tokens = 0; must be at least 1"),
    ("constraint.basis", "spam", "constraint.basis = 'spam'; allowed are span, svd, activation"),
    ("constraint.side", "inputs", "constraint.side = 'inputs'; allowed are"),
    ("constraint.energy", 0, "constraint.energy = 0.0; must be in (0, 1]"),
    ("constraint.strength", 1.5, "constraint.strength = 1.5; must be in [0, 1]"),
    ("constraint.retract_every", -1, "constraint.retract_every = -1; must be at least 0"),
    ("constraint.activation_batches", 0, "constraint.activation_batches = 0; must be at least 1"),
    ("constraint.penalty_norm", "l3", "constraint.penalty_norm = 'l3'; allowed are"),
    ("export.dtype", "q4", "export.dtype = 'q4'; allowed are"),
    ("export.shard_gib", 0, "export.shard_gib = 0.0; must be above 0"),
]


@pytest.mark.parametrize(("key", "value", "message"), RULES, ids=[f"{k}={v}" for k, v, _ in RULES])
def test_a_value_out_of_range_is_refused(config, key, value, message):
    make_settings(config)  # the control: without the change there is nothing to refuse
    with pytest.raises(SettingsError) as caught:
        make_settings(changed(config, key, value))
    assert message in str(caught.value)


def test_a_penalty_without_weight_is_refused_and_an_unused_weight_is_not(config):
    changed(config, "constraint.penalty_weight", 0.0)
    make_settings(config)
    with pytest.raises(SettingsError, match=r"constraint.penalty_weight = 0.0 with kind = "):
        make_settings(changed(config, "constraint.kind", "projection+penalty"))


@pytest.mark.parametrize("change", [("strength", 0.5), ("kind", "penalty")])
def test_a_retraction_without_a_whole_projection_is_refused(config, change):
    changed(config, "constraint.retract_every", 10)
    make_settings(config)
    with pytest.raises(SettingsError, match=r"constraint.retract_every = 10 with kind = "):
        make_settings(changed(config, f"constraint.{change[0]}", change[1]))


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (
            "mka.lerning_rate",
            "unknown config key mka.lerning_rate; did you mean mka.learning_rate?",
        ),
        ("adaptors", "unknown config key adaptors; did you mean adapters?"),
        ("compute.xyz", "unknown config key compute.xyz"),
    ],
)
def test_an_unknown_key_is_refused_with_its_nearest_name(config, key, message):
    with pytest.raises(SettingsError) as caught:
        make_settings(changed(config, key, 1))
    assert str(caught.value) == message


def test_missing_keys_are_named(config):
    del config["da"]["epochs"], config["da"]["files"]
    with pytest.raises(SettingsError, match="config lacks da.files, da.epochs"):
        make_settings(config)
    del config["da"]
    with pytest.raises(SettingsError, match="config lacks da$"):
        make_settings(config)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("seed", 1.0, "seed = 1.0 is of type float; expected int"),
        ("seed", True, "seed = True is of type bool; expected int"),
        ("mka.learning_rate", "2e-4", "mka.learning_rate = '2e-4' is of type str; expected float"),
        ("mka.learning_rate", True, "mka.learning_rate = True is of type bool; expected float"),
        ("adapters.use_rslora", 1, "adapters.use_rslora = 1 is of type int; expected bool"),
        ("base.dtype", 32, "base.dtype = 32 is of type int; expected str"),
        ("base.random", "tiny", "base.random = 'tiny'; expected a section with keys"),
        ("mka.files", "train.json", "mka.files = 'train.json'; expected a list"),
        ("mka.files", [1], "mka.files = 1 is of type int; expected str"),
        ("mka", 3, "mka = 3; expected a section with keys"),
    ],
)
def test_a_value_of_a_wrong_type_is_refused(config, key, value, message):
    with pytest.raises(SettingsError) as caught:
        make_settings(changed(config, key, value))
    assert str(caught.value) == message


def test_ints_pass_as_floats_and_lists_as_tuples_and_nothing_else_changes(config):
    changed(config, "adapters.alpha", 32)
    changed(config, "mka.files", ["a.json", "b.jsonl"])
    changed(config, "mka.weights", [1, 0.5])
    settings = make_settings(config)
    assert (settings.adapters.alpha, type(settings.adapters.alpha)) == (32.0, float)
    assert settings.mka.files == ("a.json", "b.jsonl")
    assert settings.mka.weights == (1.0, 0.5)


def test_a_config_dict_and_its_plain_dict_make_the_same_settings(config):
    locked = base.get_config()
    locked.base.path = "some/folder"
    assert make_settings(locked) == make_settings(config)


def walk(kind):
    """A settings class and those in it."""
    yield kind
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(field.type):
            yield from walk(field.type)


def test_settings_cannot_be_changed_afterwards(config):
    settings = make_settings(config)
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.adapters.rank = 3
    assert all(kind.__dataclass_params__.frozen for kind in walk(Settings))


@pytest.mark.parametrize(
    ("adapters", "scale"),
    [
        (AdapterSettings(rank=16, alpha=32.0), 2.0),
        (AdapterSettings(rank=16, alpha=32.0, use_rslora=True), 8.0),
        (AdapterSettings(rank=16, alpha=32.0, shared_experts=5), 2.0),
    ],
)
def test_the_scale_is_alpha_over_the_configured_rank(adapters, scale):
    assert adapters.scale == scale


def test_ranks_are_those_of_the_paper():
    adapters = AdapterSettings()
    ranks = {
        (component, is_attention): adapters.rank_of(component, is_attention=is_attention)
        for component in ("knowledge", "noise", "alignment")
        for is_attention in (True, False)
    }
    assert ranks == {
        ("knowledge", True): 16,
        ("knowledge", False): 32,
        ("noise", True): 128,
        ("noise", False): 128,
        ("alignment", True): 32,
        ("alignment", False): 32,
    }


@pytest.mark.parametrize(
    ("kind", "projection", "penalty"),
    [
        ("projection", True, False),
        ("penalty", False, True),
        ("projection+penalty", True, True),
        ("none", False, False),
    ],
)
def test_the_kind_of_constraint(kind, projection, penalty):
    constraint = ConstraintSettings(kind=kind)
    assert (constraint.use_projection, constraint.use_penalty) == (projection, penalty)


@pytest.mark.parametrize(
    ("changes", "needs_data"),
    [
        ({}, True),
        ({"basis": "activation", "kind": "penalty"}, True),
        ({"basis": "activation", "kind": "none"}, False),
        ({"basis": "span"}, False),
        ({"basis": "svd"}, False),
    ],
)
def test_data_are_read_for_a_basis_of_activations_that_constrains(changes, needs_data):
    assert ConstraintSettings(**changes).needs_data == needs_data


def test_settings_made_without_a_config_obey_the_same_rules():
    with pytest.raises(SettingsError, match=r"^rank = 0; must be at least 1"):
        AdapterSettings(rank=0)
    with pytest.raises(SettingsError, match="weights has 2 entries for 1 files"):
        StageSettings(files=("a",), weights=(1.0, 2.0))
    assert MeshSettings(data=2, fsdp=2, tensor=2).fsdp == 2
