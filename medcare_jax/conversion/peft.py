"""PEFT adapter folders, out and in: `adapter_config.json` and `adapter_model.safetensors`.

PEFT scales a module's delta by alpha / r with r the true rank of its factors. Ours is alpha / r
with the *configured* r, also where the true rank is 2r or a sum of ranks, so what is written is
the alpha that gives our scale at the true rank: 2 alpha at rank 2r.
"""

import collections
import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from medcare_jax import params as trees
from medcare_jax.conversion import rules, safetensors
from medcare_jax.conversion.atomic import new_folder
from medcare_jax.conversion.rules import Op, Rule
from medcare_jax.conversion.tensors import ConversionError, cast, from_array
from medcare_jax.models.families import DecoderSettings
from medcare_jax.models.folding import joined
from medcare_jax.settings import AdapterSettings

CONFIG_NAME = "adapter_config.json"
TENSORS_NAME = "adapter_model.safetensors"
PREFIX = "base_model.model."

# Values under which PEFT's arithmetic is a plain LoRA's; absent means the same.
_PLAIN_VALUES: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "fan_in_fan_out": (False, None),
    "use_dora": (False, None),
    "use_qalora": (False, None),
    "lora_bias": (False, None),
    "modules_to_save": (None, []),
    "layers_to_transform": (None,),
    "layer_replication": (None,),
    "trainable_token_indices": (None,),
    "target_parameters": (None, []),
    "exclude_modules": (None,),
    "alora_invocation_tokens": (None,),
}


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
    """

    rank: int
    alpha: float
    use_rslora: bool
    dropout: float
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]

    def rank_of(self, module: str) -> int:
        """Rank of a module's factors."""
        return int(_matching(self.rank_pattern, module, self.rank))

    def scale_of(self, module: str) -> float:
        """What a module's delta is multiplied by."""
        rank, alpha = self.rank_of(module), _matching(self.alpha_pattern, module, self.alpha)
        return float(alpha / (rank**0.5 if self.use_rslora else rank))


def save_peft(
    path: str | os.PathLike[str],
    settings: DecoderSettings,
    adapters: AdapterSettings,
    components: Sequence[Mapping[str, Any]],
    *,
    base_name: str = "",
) -> None:
    """Writes adapter trees as one PEFT adapter, which appears whole or not at all.

    Args:
      path: The folder; must not exist.
      settings: The base that the adapter is for.
      adapters: Where the scale comes from.
      components: The knowledge tree, the alignment tree, or both (as one of summed rank).
      base_name: What `base_model_name_or_path` says.

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
        safetensors.write_file(folder / TENSORS_NAME, tensors)
        (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


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
      ConversionError: Not a plain LoRA, by the field's name; tensors that do not fit the base.
    """
    path = pathlib.Path(path)
    config = read_lora_config(path)
    tensors = safetensors.read_file(path / TENSORS_NAME)
    ranks = {
        owner: config.rank_of(rules.module_name(owner))
        for owner in rules.projections(settings)
        if any(f".{owner.rpartition('/')[2]}." in name for name in tensors)
    }
    table, sizes = lora_rules(settings, ranks)
    leaves = rules.to_leaves(
        table, tensors, sizes=sizes, num_layers=settings.num_layers, what=str(path)
    )
    arrays = {
        leaf: jnp.asarray(cast(tensor, np.dtype(np.float32), name=leaf)[...])
        for leaf, tensor in leaves.items()
    }
    scales = {owner: config.scale_of(rules.module_name(owner)) for owner in ranks}
    return trees.unflatten(arrays), scales


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
      ConversionError: A field with a value that changes the arithmetic.
    """
    file = folder / CONFIG_NAME
    if not file.exists():
        raise FileNotFoundError(f"{file} is not there; an adapter folder needs it")
    fields = json.loads(file.read_bytes())
    wrong = [
        f"{name} = {fields[name]!r} (supported: {allowed[0]!r})"
        for name, allowed in _PLAIN_VALUES.items()
        if name in fields and fields[name] not in allowed
    ]
    if wrong:
        raise ConversionError(f"{file} is not a plain LoRA: {'; '.join(wrong)}")
    missing = [name for name in ("r", "lora_alpha") if name not in fields]
    if missing:
        raise ConversionError(f"{file} lacks {', '.join(missing)}")
    return LoraConfig(
        rank=int(fields["r"]),
        alpha=float(fields["lora_alpha"]),
        use_rslora=bool(fields.get("use_rslora")),
        dropout=float(fields.get("lora_dropout") or 0.0),
        rank_pattern=fields.get("rank_pattern") or {},
        alpha_pattern=fields.get("alpha_pattern") or {},
    )


def _matching(pattern: Mapping[str, float], module: str, default: float) -> float:
    """The value of the first pattern that a module's name ends with, as PEFT looks it up."""
    for key, value in pattern.items():
        if re.fullmatch(rf"(.*\.)?({key})", module):
            return value
    return default


def _plain_number(value: float) -> int | float:
    """An int where the value is one."""
    return int(value) if value == int(value) else value
