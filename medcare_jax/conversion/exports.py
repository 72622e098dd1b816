"""A source's parts out into a folder, with the report that compares the two."""

import dataclasses
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medcare_jax import params as trees
from medcare_jax.conversion.comparison import (
    Agreement,
    StreamedModel,
    compare_models,
    prompt_tokens,
)
from medcare_jax.conversion.huggingface import open_base, save_huggingface
from medcare_jax.conversion.model_card import adapter_card, conversion_card
from medcare_jax.conversion.peft import load_peft, save_peft
from medcare_jax.conversion.reference import Layout, load_reference, save_reference
from medcare_jax.conversion.report import write_report
from medcare_jax.conversion.sources import Source, base_leaves, live_model, unrounded
from medcare_jax.conversion.streams import Delta, Rounding, check_deltas, fold_leaves
from medcare_jax.conversion.tensors import ConversionError, LazyTensor
from medcare_jax.params import KNOWLEDGE
from medcare_jax.version import __version__

_BIT_IDENTICAL = "nothing was added or rounded: every value is the source's"
_RAN = "both models ran the built-in prompts in float32"


def export_huggingface(
    source: Source,
    target: pathlib.Path,
    *,
    dtype: np.dtype[Any] | None,
    shard_bytes: int,
    card: str = "",
) -> None:
    """Writes base and parts folded into one model, with its report.

    Args:
      source: With the parts that are to be kept.
      target: The folder; must not exist.
      dtype: Of the weights; by default those of the base.
      shard_bytes: Most bytes of values in one file.
      card: The model card; by default one that says what was converted.

    Raises:
      ConversionError: The target exists, or parts do not fit the base.
    """
    rounding = Rounding()
    base, settings = source.merged_base(), source.base.settings
    deltas = source.deltas(source.unmerged())
    leaves = fold_leaves(base, deltas, dtype=dtype, rounding=rounding)
    is_copy = not source.parts and all(leaves[path] is base[path] for path in base)

    def finish(folder: pathlib.Path, written: Mapping[str, str]) -> None:
        found_settings, tensors = open_base(folder)
        found = base_leaves(found_settings, tensors, what=str(folder))
        agreement = None if is_copy else _compare(source, StreamedModel(found_settings, found))
        write_report(
            folder,
            _facts(source, "huggingface", agreement)
            | {"dtype": _dtype_names(leaves), "rounding": dataclasses.asdict(rounding)},
            written,
        )

    save_huggingface(
        target,
        settings,
        trees.unflatten(leaves),
        source.base.tokenizer,
        shard_bytes=shard_bytes,
        card=card or conversion_card(source),
        generation_config=source.base.generation_config,
        finish=finish,
    )


def export_peft(source: Source, target: pathlib.Path) -> None:
    """Writes the parts as one PEFT adapter for the base, float32, with its report.

    Raises:
      ConversionError: The target exists, or parts do not fit the base.
    """
    settings = source.base.settings
    check_deltas(source.base.leaves, source.deltas(source.parts))

    def finish(folder: pathlib.Path, written: Mapping[str, str]) -> None:
        tree, scales = load_peft(folder, settings)
        flat = trees.flatten(tree)
        deltas: dict[str, Sequence[Delta]] = {
            owner: [Delta(flat[f"{owner}/lora_a"], flat[f"{owner}/lora_b"], scale)]
            for owner, scale in scales.items()
        }
        agreement = _compare(source, unrounded(source.base, deltas))
        (folder / "README.md").write_text(adapter_card(source), encoding="utf-8")
        write_report(folder, _facts(source, "peft", agreement) | {"dtype": "float32"}, written)

    save_peft(
        target,
        settings,
        source.adapters,
        list(source.parts.values()),
        base_name=source.base.name,
        finish=finish,
    )


def export_reference(source: Source, target: pathlib.Path, *, layout: Layout) -> None:
    """Writes the parts as the authors' code would have, float32, with the report.

    Raises:
      ConversionError: The target exists, or the parts are not those of a stage.
    """
    settings = source.base.settings

    def finish(folder: pathlib.Path, written: Mapping[str, str]) -> None:
        adapters, found = load_reference(folder, settings)
        model = live_model(settings, source.merged_base(), found, adapters)
        agreement = _compare(source, model)
        write_report(folder, _facts(source, "reference", agreement) | {"dtype": "float32"}, written)

    components = source.components()
    components.setdefault(KNOWLEDGE, {})
    save_reference(target, settings, source.adapters, components, layout=layout, finish=finish)


def export_bytes(source: Source, dtype: np.dtype[Any] | None) -> int:
    """How many bytes the weights of a folded export take."""
    return sum(
        leaf.nbytes if dtype is None else leaf.nbytes // leaf.dtype.itemsize * dtype.itemsize
        for leaf in source.base.leaves.values()
    )


def check_room(target: pathlib.Path, nbytes: int) -> int:
    """Free bytes of the disk that the target is on.

    Raises:
      ConversionError: Fewer than are needed, or the target exists.
    """
    if target.exists():
        raise ConversionError(f"{target} exists; name another target or remove it first")
    place = next(parent for parent in target.absolute().parents if parent.exists())
    free = shutil.disk_usage(place).free
    if free < nbytes:
        raise ConversionError(
            f"{target} needs {nbytes / 2**30:.2f} GiB, the disk of {place} has "
            f"{free / 2**30:.2f} GiB free; make room or name a target on another disk"
        )
    return free


def _compare(source: Source, exported: StreamedModel) -> Agreement:
    """The live model against the exported one, on the built-in prompts."""
    prompts = prompt_tokens(source.base.settings, source.base.tokenizer)
    return compare_models(source.live(), exported, prompts)


def _facts(source: Source, target: str, agreement: Agreement | None) -> dict[str, Any]:
    """What every report says."""
    numbers = agreement or Agreement(0, 0.0, 0.0, 1.0)
    digests = {part: trees.digest(tree) for part, tree in source.parts.items()}
    return {
        "source": {
            "kind": source.kind,
            "name": source.name,
            "base": source.base.name,
            "sha256": {"base": source.base.digest, **digests},
            **source.facts,
        },
        "target": target,
        "kept": list(source.parts),
        "scale": _scale(source),
        "agreement": {
            **dataclasses.asdict(numbers),
            "how": _BIT_IDENTICAL if agreement is None else _RAN,
        },
        "version": __version__,
    }


def _scale(source: Source) -> float | dict[str, float] | None:
    """What the adapters' products are multiplied by; by projection if that differs."""
    if not source.parts:
        return None
    scales = source.scales or {}
    return (
        dict(scales)
        if len(set(scales.values())) > 1
        else next(iter(scales.values()), source.adapters.scale)
    )


def _dtype_names(leaves: Mapping[str, LazyTensor]) -> str:
    """The dtypes of all leaves, usually one."""
    return ", ".join(sorted({str(leaf.dtype) for leaf in leaves.values()}))
