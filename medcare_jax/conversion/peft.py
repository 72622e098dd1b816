"""PEFT adapter folders, out and in: `adapter_config.json` and `adapter_model.safetensors`.

PEFT scales a module's delta by alpha / r with r the true rank of its factors. Ours is alpha / r
with the *configured* r, also where the true rank is 2r or a sum of ranks, so what is written is
the alpha that gives our scale at the true rank: 2 alpha at rank 2r.
"""

import collections
import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax.numpy as jnp
import numpy as np

from medcare_jax import params as trees
from medcare_jax.conversion import rules, safetensors
from medcare_jax.conversion.atomic import Finish, new_folder
from medcare_jax.conversion.metadata import naming, read_object, write_object
from medcare_jax.conversion.module_patterns import Patterns
from medcare_jax.conversion.rules import Op, Rule
from medcare_jax.conversion.tensors import ConversionError, LazyTensor, cast, from_array
from medcare_jax.fields import Fields
from medcare_jax.models.families import DecoderSettings
from medcare_jax.models.folding import joined
from medcare_jax.settings import AdapterSettings

CONFIG_NAME = "adapter_config.json"
TENSORS_NAME = "adapter_model.safetensors"
PREFIX = "base_model.model."
_Number = TypeVar("_Number", int, float)

# Values under which PEFT's arithmetic is a plain LoRA's; absent means the same.
_PLAIN_VALUES: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "fan_in_fan_out": (False, None),
    "use_dora": (False, None),
    "use_qalora": (False, None),
    "lora_bias": (False, None),
    "modules_to_save": (None, []),
    "layer_replication": (None,),
    "trainable_token_indices": (None,),
    "target_parameters": (None, []),
    "exclude_modules": (None,),
    "alora_invocation_tokens": (None,),
    "arrow_config": (None,),
    "kasa_config": (None,),
    "monteclora_config": (None,),
    "use_bdlora": (None, False),
    "velora_config": (None,),
}
# Ways to begin in which PEFT takes the first product of the factors out of the base's weights. It
# writes another value once such an adapter has been converted to a plain LoRA.
_CHANGES_BASE = ("pissa", "corda", "olora", "loftq", "lora_ga")


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """What an `adapter_config.json` says of a plain LoRA.

    Attributes:
      rank: `r`.
      alpha: `lora_alpha`.
      use_rslora: Whether the scale is alpha / sqrt(r).
      dropout: `lora_dropout`.
      rank_pattern: Ranks of modules that differ, by a regular expression on their name's end.
      alpha_pattern: The same for alpha.
      targets: Which modules have factors: ends of their names, or one regular expression.
      layers: Which layers have factors; None is all.
    """

    rank: int
    alpha: float
    use_rslora: bool
    dropout: float
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    targets: tuple[str, ...] | str
    layers: tuple[int, ...] | None

    def is_target(self, module: str, layer: int, patterns: Patterns) -> bool:
        """Whether a module has factors, as PEFT decides it."""
        if self.layers is not None and layer not in self.layers:
            return False
        if isinstance(self.targets, str):
            return self.targets == "all-linear" or patterns.matches(
                self.targets, module, field="target_modules"
            )
        return any(module == name or module.endswith(f".{name}") for name in self.targets)

    def module(self, name: str, patterns: Patterns) -> "LoraModule":
        """A module's name, rank and scale."""
        rank = _first_match(self.rank_pattern, name, self.rank, patterns, field="rank_pattern")
        alpha = _first_match(self.alpha_pattern, name, self.alpha, patterns, field="alpha_pattern")
        return LoraModule(name, rank, alpha / (rank**0.5 if self.use_rslora else rank))


class LoraModule(NamedTuple):
    """What a config says of one module.

    Attributes:
      name: torch's name of it in the base.
      rank: Rank of its factors.
      scale: What its delta is multiplied by.
    """

    name: str
    rank: int
    scale: float


def save_peft(
    path: str | os.PathLike[str],
    settings: DecoderSettings,
    adapters: AdapterSettings,
    components: Sequence[Mapping[str, Any]],
    *,
    base_name: str = "",
    finish: Finish | None = None,
) -> None:
    """Writes adapter trees as one PEFT adapter, which appears whole or not at all.

    Args:
      path: The folder; must not exist.
      settings: The base that the adapter is for.
      adapters: Where the scale comes from.
      components: The knowledge tree, the alignment tree, or both (as one of summed rank).
      base_name: What `base_model_name_or_path` says.
      finish: Called before the folder takes its name; see `atomic.Finish`. It may add files.

    Raises:
      ConversionError: The target exists, or a tree does not fit the base.
    """
    factors = joined(*components)
    if not factors:
        raise ConversionError("there is no adapter to write: the trees given have no lora_a")
    ranks = {owner: int(lora_a.shape[-1]) for owner, (lora_a, _) in factors.items()}
    leaves = {
        f"{owner}/{name}": from_array(factor)
        for owner, pair in factors.items()
        for name, factor in zip(("lora_a", "lora_b"), pair, strict=True)
    }
    table, sizes = lora_rules(settings, ranks)
    tensors = rules.to_tensors(
        table, leaves, sizes=sizes, num_layers=settings.num_layers, what="the adapter to save"
    )
    config = adapter_config(ranks, adapters.scale, dropout=adapters.dropout, base_name=base_name)
    with new_folder(path) as folder:
        written = {TENSORS_NAME: safetensors.write_file(folder / TENSORS_NAME, tensors)}
        write_object(folder / CONFIG_NAME, config)
        if finish is not None:
            finish(folder, written)


def load_peft(
    path: str | os.PathLike[str], settings: DecoderSettings
) -> tuple[trees.Tree, dict[str, float]]:
    """A PEFT LoRA adapter as a tree of ours, and the scale of each projection.

    Args:
      path: The adapter's folder.
      settings: The base that it is for.

    Returns:
      The tree with float32 leaves `lora_a [l, in, r]` and `lora_b [l, r, out]` below the path of
      each adapted projection, and by the same path what `lora_a lora_b` is to be multiplied by.

    Raises:
      FileNotFoundError: One of the two files is not there.
      ConversionError: Not a plain LoRA, by the field's name; tensors that do not fit the base or
        are not finite.

    Ranks and scales may differ from layer to layer. Then a layer of lower rank, or without
    factors, has zeros, and a layer of another scale has the ratio in its `lora_b`.
    """
    path = pathlib.Path(path)
    config = read_lora_config(path)
    tensors = safetensors.read_file(path / TENSORS_NAME)
    with naming(path / CONFIG_NAME):
        modules = _modules(config, settings)
    sizes = rules.letter_sizes(settings)
    expected = {
        name: shape
        for owner, found in modules.items()
        for module in found.values()
        for name, shape in _pair_shapes(module, owner, settings, sizes)
    }
    rules.compare(expected, tensors, what=str(path))
    leaves: dict[str, Any] = {}
    scales: dict[str, float] = {}
    for owner, found in modules.items():
        scales[owner] = next(iter(found.values())).scale
        stacked = _stacked(owner, found, tensors, settings, scales[owner])
        for name, leaf in stacked.items():
            if not np.isfinite(leaf).all():
                raise ConversionError(
                    f"{path}: {owner}/{name} is not finite in some entry, alone or times its "
                    "scale; expected numbers. Train the adapter again or fetch it again"
                )
            leaves[f"{owner}/{name}"] = jnp.asarray(leaf)
    return trees.unflatten(leaves), scales


def _modules(config: LoraConfig, settings: DecoderSettings) -> dict[str, dict[int, LoraModule]]:
    """The modules that have factors: by the projection's path and the layer."""
    modules, patterns = {}, Patterns()
    for owner in rules.projections(settings):
        found = {
            layer: config.module(name, patterns)
            for layer, name in enumerate(rules.module_names(owner, settings.num_layers))
            if config.is_target(name, layer, patterns)
        }
        if found:
            modules[owner] = found
    return modules


def _pair_shapes(
    module: LoraModule, owner: str, settings: DecoderSettings, sizes: Mapping[str, int]
) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes in the file of one module's factors."""
    pair = pair_rules(PREFIX + module.name, owner, rules.projections(settings)[owner], "rank")
    return [(rule.source, rule.file_shape({**sizes, "rank": module.rank})) for rule in pair]


def _stacked(
    owner: str,
    modules: Mapping[int, LoraModule],
    tensors: Mapping[str, LazyTensor],
    settings: DecoderSettings,
    scale: float,
) -> dict[str, np.ndarray]:
    """The two leaves of a projection, zeros where a layer has a lower rank or no factors.

    Where a layer's scale is another one, its B holds the ratio.
    """
    rank = max(module.rank for module in modules.values())
    first, second = (rules.letter_sizes(settings)[x] for x in rules.projections(settings)[owner])
    lora_a = np.zeros((settings.num_layers, first, rank), np.float32)
    lora_b = np.zeros((settings.num_layers, rank, second), np.float32)
    for layer, module in modules.items():
        name, own = PREFIX + module.name, module.rank
        ratio = module.scale / scale
        lora_a[layer, :, :own] = _wide(tensors, f"{name}.lora_A.weight").T
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused
            lora_b[layer, :own] = _wide(tensors, f"{name}.lora_B.weight").T * np.float32(ratio)
    return {"lora_a": lora_a, "lora_b": lora_b}


def _wide(tensors: Mapping[str, LazyTensor], name: str) -> np.ndarray:
    """A tensor's values as float32."""
    return cast(tensors[name], np.dtype(np.float32), name=name)[...]


def lora_rules(
    settings: DecoderSettings, ranks: Mapping[str, int]
) -> tuple[tuple[Rule, ...], dict[str, int]]:
    """The table of a PEFT adapter on the given projections, and the sizes of its letters."""
    widths = rules.projections(settings)
    strangers = sorted(ranks.keys() - widths)
    if strangers:
        raise ConversionError(f"no projection of the base is at {', '.join(strangers)}")
    table = tuple(
        rule
        for owner in ranks
        for rule in pair_rules(f"{PREFIX}{rules.module_name(owner)}", owner, widths[owner], owner)
    )
    return table, rules.letter_sizes(settings) | dict(ranks)


def pair_rules(
    module: str, leaf: str, widths: tuple[str, str], rank: str, suffix: str = ""
) -> tuple[Rule, Rule]:
    """The rows of one pair of factors: torch keeps A as [r, in] and B as [out, r]."""
    first, second = widths
    return (
        Rule(f"{module}.lora_A{suffix}.weight", f"{leaf}/lora_a", Op.TRANSPOSE, f"{first} {rank}"),
        Rule(f"{module}.lora_B{suffix}.weight", f"{leaf}/lora_b", Op.TRANSPOSE, f"{rank} {second}"),
    )


def adapter_config(
    ranks: Mapping[str, int], scale: float, *, dropout: float, base_name: str
) -> dict[str, Any]:
    """The `adapter_config.json` under which PEFT multiplies every delta by `scale`.

    >>> config = adapter_config({"l/q_proj": 4, "l/up_proj": 8}, 2.0, dropout=0.0, base_name="")
    >>> config["r"], config["lora_alpha"], config["rank_pattern"], config["alpha_pattern"]
    (4, 8, {'up_proj': 8}, {'up_proj': 16})
    """
    usual = collections.Counter(ranks.values()).most_common(1)[0][0]
    names = {owner.rpartition("/")[2]: rank for owner, rank in ranks.items()}
    other = {name: rank for name, rank in names.items() if rank != usual}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "inference_mode": True,
        "r": usual,
        "lora_alpha": _plain_number(scale * usual),
        "lora_dropout": dropout,
        "use_rslora": False,
        "use_dora": False,
        "bias": "none",
        "fan_in_fan_out": False,
        "target_modules": sorted(names),
        "rank_pattern": other,
        "alpha_pattern": {name: _plain_number(scale * rank) for name, rank in other.items()},
    }


def read_lora_config(folder: pathlib.Path) -> LoraConfig:
    """A folder's `adapter_config.json`, with everything that is not plain LoRA refused by name.

    Raises:
      FileNotFoundError: It is not there.
      ConversionError: A field with a value that changes the arithmetic, or that is not of the
        type or range that it must have.
    """
    file = folder / CONFIG_NAME
    if not file.exists():
        raise FileNotFoundError(f"{file} is not there; an adapter folder needs it")
    fields = read_object(file)
    wrong = [
        f"{name} = {fields[name]!r} (supported: {allowed[0]!r})"
        for name, allowed in _PLAIN_VALUES.items()
        if name in fields and fields[name] not in allowed
    ]
    begun = str(fields.get("init_lora_weights"))
    if begun.lower().startswith(_CHANGES_BASE):
        wrong.append(
            f"init_lora_weights = {begun!r}, which changes the base too (supported: True; PEFT's "
            "save_pretrained converts it, given path_initial_model_for_weight_conversion)"
        )
    if wrong:
        raise ConversionError(f"{file} is not a plain LoRA: {'; '.join(wrong)}")
    with naming(file):
        return _lora_config(Fields(fields))


def _lora_config(fields: Fields) -> LoraConfig:
    """The fields of a plain LoRA."""
    ranks, alphas = fields.inner("rank_pattern"), fields.inner("alpha_pattern")
    targets = fields.content.get("target_modules")
    return LoraConfig(
        rank=fields.size("r"),
        alpha=fields.number("lora_alpha"),
        use_rslora=fields.flag("use_rslora", False),
        dropout=fields.share("lora_dropout", 0.0),
        rank_pattern={name: ranks.size(name) for name in ranks},
        alpha_pattern={name: alphas.number(name) for name in alphas},
        targets=targets if isinstance(targets, str) else fields.texts("target_modules"),
        layers=fields.indices("layers_to_transform") or None,
    )


def _first_match(
    values: Mapping[str, _Number], module: str, default: _Number, patterns: Patterns, *, field: str
) -> _Number:
    """The value of the first pattern that a module's name ends with, as PEFT looks it up."""
    for pattern, value in values.items():
        if patterns.matches(rf"(.*\.)?({pattern})", module, field=field):
            return value
    return default


def _plain_number(value: float) -> int | float:
    """An int where the value is one."""
    return int(value) if value == int(value) else value
