"""The checkpoints of the authors' PyTorch code, in and out.

A stage-1 folder holds the attention's LoRA as a PEFT adapter and the FFN's modules in
`non_lora_trainables.bin`. A stage-2 folder holds two pairs of factors per FFN projection, either
in that `.bin` (between steps) or in `model.safetensors` beside an empty `.bin` (at the end).
torch keeps every matrix transposed against ours.
"""

import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from medcare_jax import params as trees
from medcare_jax.conversion import peft, rules, safetensors
from medcare_jax.conversion.atomic import Finish, new_folder
from medcare_jax.conversion.metadata import naming, read_object, write_object
from medcare_jax.conversion.rules import Op, Rule
from medcare_jax.conversion.tensors import (
    ConversionError,
    LazyTensor,
    cast,
    concatenate,
    from_array,
    separate,
)
from medcare_jax.conversion.torch_files import read_bin, write_bin
from medcare_jax.fields import Fields
from medcare_jax.models.families import DecoderSettings, huggingface_config
from medcare_jax.params import ALIGNMENT, KNOWLEDGE, NOISE
from medcare_jax.settings import AdapterSettings

BIN_NAME = "non_lora_trainables.bin"
Layout = Literal["final", "mid-run"]

# Fields of config.json, absent in some folders, and the values that our arithmetic honours.
_SUPPORTED = {"share_expert": True, "wrap_attn_orth": False, "expert_selection": "top_k"}
_ROUTER = ".switch."
_NOISE_TENSOR = re.compile(r".*\.(switch|experts)\..*")


class RoutersMissingError(ConversionError):
    """A stage-1 folder without routers; its noise aggregator cannot be used."""


def load_reference(
    path: str | os.PathLike[str], settings: DecoderSettings, *, drop_noise: bool = False
) -> tuple[AdapterSettings, dict[str, trees.Tree]]:
    """A reference checkpoint's adapters in our layout.

    Args:
      path: A stage-1 or stage-2 folder; which one is seen from its tensors' names.
      settings: The base that they are for: the original one for stage 1, the one with merged
        attention for stage 2.
      drop_noise: Leave out the noise aggregator (stage 1), so that routers are not needed.

    Returns:
      The adapters' settings, and the trees: `knowledge` and `noise` of a stage-1 folder,
      `knowledge` and `alignment` of a stage-2 folder. Leaves are float32, layers stacked; half
      precision is widened, which is exact. `params.merge({"base": base, **trees})` applies them.

    Raises:
      FileNotFoundError: A file of the layout is not there.
      RoutersMissingError: No router in a stage-1 folder and `drop_noise` is off.
      ConversionError: Tensors that do not fit the base; a `.bin` that is not plain tensors; a
        setting that is not implemented.

    >>> adapters, adapter_trees = load_reference("mka", settings)       # doctest: +SKIP
    >>> model = merge({"base": base, **adapter_trees})                  # doctest: +SKIP
    """
    folder = pathlib.Path(path)
    adapters = _read_settings(folder)
    tensors = _read_tensors(folder, settings)
    if any(".orth." in name for name in tensors):
        components: tuple[str, ...] = (KNOWLEDGE, ALIGNMENT)
    elif drop_noise:
        components = (KNOWLEDGE,)
        tensors = {name: value for name, value in tensors.items() if not _is_noise(name)}
    else:
        components = (KNOWLEDGE, NOISE)
        _check_routers(tensors, folder)
        _check_experts(adapters, tensors, folder)
    leaves = rules.to_leaves(
        _table(settings, adapters, components),
        tensors,
        sizes=_sizes(settings, adapters),
        num_layers=settings.num_layers,
        what=str(folder),
    )
    found = {
        leaf: jnp.asarray(cast(tensor, np.dtype(np.float32), name=leaf)[...])
        for leaf, tensor in _join_experts(leaves, adapters.experts).items()
    }
    return adapters, dict(trees.unflatten(found))


def save_reference(
    path: str | os.PathLike[str],
    settings: DecoderSettings,
    adapters: AdapterSettings,
    components: Mapping[str, Mapping[str, Any]],
    *,
    layout: Layout = "final",
    finish: Finish | None = None,
) -> None:
    """Writes adapters as the reference's code would have; appears whole or not at all.

    Args:
      path: The folder; must not exist.
      settings: The base.
      adapters: The adapters' settings.
      components: Trees by name: knowledge and noise (stage 1), or knowledge and alignment.
      layout: Where stage 2 keeps its tensors: `final` in `model.safetensors`, `mid-run` in the
        `.bin`. Stage 1 has one layout.
      finish: Called before the folder takes its name; see `atomic.Finish`. It may add files.

    Raises:
      ConversionError: The target exists, or the trees are not those of a stage.
    """
    stage = 2 if ALIGNMENT in components else 1
    leaves = {
        f"{name}/{leaf}": from_array(value)
        for name, tree in components.items()
        for leaf, value in trees.flatten(tree).items()
    }
    tensors = rules.to_tensors(
        _table(settings, adapters, (KNOWLEDGE, ALIGNMENT if stage == 2 else NOISE)),
        _separate_experts(leaves, adapters.experts),
        sizes=_sizes(settings, adapters),
        num_layers=settings.num_layers,
        what=f"the stage-{stage} adapters to save",
    )
    attention = {name: tensor for name, tensor in tensors.items() if ".self_attn." in name}
    ffn = {name: tensor for name, tensor in tensors.items() if name not in attention}
    in_safetensors = stage == 2 and layout == "final"
    with new_folder(path) as folder:
        written = {}
        if stage == 1:
            name = peft.TENSORS_NAME
            written[name] = safetensors.write_file(folder / name, attention)
        if in_safetensors:
            name = safetensors.SINGLE_NAME
            written[name] = safetensors.write_file(folder / name, ffn)
        write_bin(folder / BIN_NAME, {} if in_safetensors else ffn)
        write_object(folder / peft.CONFIG_NAME, _adapter_config(adapters, stage))
        write_object(folder / "config.json", _model_config(settings, adapters, stage))
        if finish is not None:
            finish(folder, written)


def _table(
    settings: DecoderSettings, adapters: AdapterSettings, components: tuple[str, ...]
) -> tuple[Rule, ...]:
    """The rows of a stage; leaves begin with the component, experts end with their number."""
    table: list[Rule] = []
    stage = 2 if ALIGNMENT in components else 1
    for path, widths in rules.projections(settings).items():
        module = rules.module_name(path)
        is_attention = "/self_attn/" in path
        if stage == 2:
            if not is_attention:
                for inner, component in (("base", KNOWLEDGE), ("orth", ALIGNMENT)):
                    leaf = f"{component}/{path}"
                    table += peft.pair_rules(f"{module}.{inner}", leaf, widths, "shared")
            continue
        module = f"{peft.PREFIX}{module}"
        if is_attention:
            table += peft.pair_rules(module, f"{KNOWLEDGE}/{path}", widths, "r")
            continue
        if NOISE in components:
            table += _noise_rules(module, f"{NOISE}/{path}", widths, adapters.experts)
        shared = f"{module}.share_experts"
        table += peft.pair_rules(shared, f"{KNOWLEDGE}/{path}", widths, "shared")
    return tuple(table)


def _noise_rules(module: str, leaf: str, widths: tuple[str, str], experts: int) -> tuple[Rule, ...]:
    """The rows of a projection's router and experts."""
    router = (
        Rule(f"{module}.switch.weight", f"{leaf}/router_kernel", Op.TRANSPOSE, f"{widths[0]} e"),
        Rule(f"{module}.switch.bias", f"{leaf}/router_bias", Op.COPY, "e"),
    )
    pairs = [
        Rule(rule.source, f"{rule.leaf}/{expert}", rule.op, rule.shape)
        for expert in range(experts)
        for rule in peft.pair_rules(f"{module}.experts.{expert}", leaf, widths, "r", f"_{expert}")
    ]
    return (*router, *pairs)


def _sizes(settings: DecoderSettings, adapters: AdapterSettings) -> dict[str, int]:
    """What the letters stand for, ranks and experts included."""
    return rules.letter_sizes(settings) | {
        "r": adapters.rank,
        "shared": adapters.rank * adapters.shared_experts,
        "e": adapters.experts,
    }


def _join_experts(leaves: Mapping[str, LazyTensor], experts: int) -> dict[str, LazyTensor]:
    """Experts' factors side by side: columns of lora_a, rows of lora_b."""
    joined = {leaf: tensor for leaf, tensor in leaves.items() if not leaf[-1].isdigit()}
    for owner in dict.fromkeys(leaf.rpartition("/")[0] for leaf in leaves if leaf[-1].isdigit()):
        parts = [leaves[f"{owner}/{expert}"] for expert in range(experts)]
        joined[owner] = concatenate(parts, _expert_axis(owner))
    return joined


def _separate_experts(leaves: Mapping[str, LazyTensor], experts: int) -> dict[str, LazyTensor]:
    """Inverts `_join_experts`."""
    separated: dict[str, LazyTensor] = {}
    for leaf, tensor in leaves.items():
        axis = _expert_axis(leaf)
        if not leaf.startswith(f"{NOISE}/") or "/lora_" not in leaf:
            separated[leaf] = tensor
        elif tensor.shape[axis] % experts:
            raise ConversionError(
                f"{leaf} has width {tensor.shape[axis]}, not a multiple of {experts} experts"
            )
        else:
            for expert, part in enumerate(separate(tensor, experts, axis)):
                separated[f"{leaf}/{expert}"] = part
    return separated


def _expert_axis(leaf: str) -> int:
    """Along which axis of [l, in, r] or [l, r, out] experts lie."""
    return 2 if leaf.endswith("lora_a") else 1


def _is_noise(name: str) -> bool:
    """Whether a tensor belongs to the routed experts (not to the shared one)."""
    return _NOISE_TENSOR.fullmatch(name) is not None


def _check_routers(tensors: Mapping[str, LazyTensor], folder: pathlib.Path) -> None:
    """Raises if there are experts but no router at all, as in the reference's mid-run folders."""
    if not any(_ROUTER in name for name in tensors):
        raise RoutersMissingError(
            f"{folder} has no router (no tensor named *.switch.weight or *.switch.bias): it is a "
            "mid-run stage-1 checkpoint, from which the reference leaves them out. Its noise "
            "aggregator cannot be used; take the final folder, or pass drop_noise=True to go on "
            "with the knowledge alone"
        )


def _check_experts(
    adapters: AdapterSettings, tensors: Mapping[str, LazyTensor], folder: pathlib.Path
) -> None:
    """Raises if the experts cannot all be there, before the names of their tensors are listed."""
    if adapters.experts > len(tensors):
        raise ConversionError(
            f"{folder}: num_experts is {adapters.experts}, of which each needs tensors of its own, "
            f"and there are {len(tensors)} in all; correct config.json or fetch the folder again"
        )


def _read_settings(folder: pathlib.Path) -> AdapterSettings:
    """Ranks, scale and experts, from the folder's two JSON files."""
    lora = peft.read_lora_config(folder)
    file = folder / "config.json"
    if not file.exists():
        raise FileNotFoundError(f"{file} is not there; it says how many experts there are")
    config = read_object(file)
    missing = [
        name
        for name in ("num_experts", "num_experts_per_token", "num_share_experts")
        if name not in config
    ]
    expected = _SUPPORTED | {"use_rslora": lora.use_rslora}
    wrong = [
        f"{name} = {config[name]!r} (supported: {allowed!r})"
        for name, allowed in expected.items()
        if config.get(name, allowed) != allowed
    ]
    wrong += [
        f"{name} in {peft.CONFIG_NAME}"
        for name in ("rank_pattern", "alpha_pattern")
        if getattr(lora, name)
    ]
    if missing or wrong:
        raise ConversionError(
            f"{folder} is not a reference checkpoint that is supported: config.json lacks "
            f"{', '.join(missing) or 'nothing'}; not supported: {'; '.join(wrong) or 'nothing'}"
        )
    fields = Fields(config)
    with naming(file):
        return AdapterSettings(
            rank=lora.rank,
            alpha=lora.alpha,
            use_rslora=lora.use_rslora,
            shared_experts=fields.size("num_share_experts"),
            experts=fields.size("num_experts"),
            experts_per_token=fields.size("num_experts_per_token"),
            dropout=lora.dropout,
        )


def _read_tensors(folder: pathlib.Path, settings: DecoderSettings) -> dict[str, LazyTensor]:
    """All adapter tensors of a folder by name, from whichever files its layout keeps them in."""
    tensors = read_bin(folder / BIN_NAME)
    if not tensors:
        # The final layout of stage 2. Where the whole model stands there too, the base is not ours.
        base = {
            name
            for rule in rules.TABLES[settings.family]
            for name in rule.sources(settings.num_layers)
        }
        found = safetensors.read_folder(folder)
        tensors = {name: tensor for name, tensor in found.items() if name not in base}
    if (folder / peft.TENSORS_NAME).exists():
        tensors |= safetensors.read_file(folder / peft.TENSORS_NAME)
    return tensors


def _adapter_config(adapters: AdapterSettings, stage: int) -> dict[str, Any]:
    """The `adapter_config.json` of a stage; stage 2 has no PEFT module."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "r": adapters.rank,
        "lora_alpha": adapters.alpha,
        "lora_dropout": adapters.dropout,
        "use_rslora": adapters.use_rslora,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": ["k_proj", "o_proj", "q_proj", "v_proj"] if stage == 1 else [],
    }


def _model_config(
    settings: DecoderSettings, adapters: AdapterSettings, stage: int
) -> dict[str, Any]:
    """The `config.json` of a stage: the base's, with the reference's fields."""
    constraint = {"wrap_ffn_orth": True, "wrap_attn_orth": False} if stage == 2 else {}
    return (
        huggingface_config(settings)
        | constraint
        | {
            "num_experts": adapters.experts,
            "num_experts_per_token": adapters.experts_per_token,
            "share_expert": True,
            "num_share_experts": adapters.shared_experts,
            "use_rslora": adapters.use_rslora,
        }
    )
