"""Any model that can be scored, from a path: folder, GGUF, embedded, hub, adapters, or a run."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from medcare_jax.conversion import bases, hub
from medcare_jax.conversion.sources import (
    ATTENTION,
    Source,
    halves,
    open_source,
    recognise,
)
from medcare_jax.conversion.tensors import ConversionError
from medcare_jax.data.chat import tokenizer_digest
from medcare_jax.evaluation.asking import Subject
from medcare_jax.evaluation.results import Model
from medcare_jax.models.aggregators import Components
from medcare_jax.models.decoder import Decoder
from medcare_jax.params import BASE, KNOWLEDGE, NOISE, Tree, digest, flatten, merge, unflatten
from medcare_jax.run.restore import base_of, check_base, read_adapters
from medcare_jax.settings import AdapterSettings, BaseSettings, ComputeSettings
from medcare_jax.sharding import path_name, sharding_for


@dataclasses.dataclass(frozen=True)
class Asked:
    """Which model; fields as the flags of `tools/evaluate.py`.

    Attributes:
      path: A Hugging Face folder, a .gguf file, `embedded`, a name of the hub, a run's workdir, or
        adapters of others (PEFT, the authors' checkpoints).
      base: Of adapters of others.
      keep: Parts of a run or of adapters; none: all but the noise, as in an export.
      stage: Of a run; empty: its latest.
      step: Of that stage; None: its newest good checkpoint.
      dtype: Of weights and arithmetic.
    """

    path: str
    base: str = ""
    keep: tuple[str, ...] = ()
    stage: str = ""
    step: int | None = None
    dtype: str = "float32"


def open_subject(asked: Asked, mesh: Mesh) -> tuple[Subject, Model]:
    """The model on a mesh, its adapters live, and what results call it.

    Raises:
      FileNotFoundError: Nothing is there.
      ConversionError: Of no known kind; a part to keep that it has not; what was asked for is of
        another kind.
      CheckpointError: A run without such a checkpoint, or with another base.
    """
    if asked.path == bases.EMBEDDED:
        return _whole(asked, bases.EMBEDDED, mesh)
    path = hub.locate(asked.path)
    kind = recognise(path)
    if kind == "run":
        return _run(asked, path, mesh)
    if kind in ("huggingface", "gguf"):
        return _whole(asked, kind, mesh)
    return _adapters(asked, path, kind, mesh)


def _whole(asked: Asked, kind: str, mesh: Mesh) -> tuple[Subject, Model]:
    """A model without adapters."""
    if asked.keep or asked.base or asked.stage or asked.step is not None:
        raise ConversionError(
            f"{asked.path} is a whole model; --base is of adapters, --stage and --step are of "
            "runs, --keep is of both"
        )
    base = _base(asked.path, asked, mesh)
    subject = _subject(asked, base, {BASE: base.params}, AdapterSettings())
    return subject, _facts(base.name, kind, base.digest, subject)


def _run(asked: Asked, workdir: pathlib.Path, mesh: Mesh) -> tuple[Subject, Model]:
    """A run of ours at a stage and step, its adapters beside the weights as they were trained."""
    if asked.base:
        raise ConversionError(
            f"{workdir} is a run, which names its own base; --base is of adapters"
        )
    found = read_adapters(workdir, stage=asked.stage or None, step=asked.step)
    base = bases.load(
        dataclasses.replace(base_of(found), dtype=asked.dtype),
        mesh,
        seed=found.settings.seed,
    )
    check_base(found, base.digest)
    trees = dict(found.trees)
    parts = ({ATTENTION: trees.pop(ATTENTION)} if ATTENTION in trees else {}) | halves(
        trees.pop(KNOWLEDGE)
    )
    parts |= trees
    keep = _kept(asked, parts, workdir.name)
    subject = _subject(
        asked, base, _with_parts(base.params, parts, keep, mesh), found.settings.adapters
    )
    weights = _digest(base.digest, parts, keep, found.settings.adapters)
    return subject, {
        **_facts(workdir.name, "run", weights, subject),
        "keep": list(keep),
        "stage": found.stage,
        "step": found.step,
    }


def _adapters(asked: Asked, path: pathlib.Path, kind: str, mesh: Mesh) -> tuple[Subject, Model]:
    """Adapters of others, beside the weights where the ranks allow it, else added to them."""
    if asked.stage or asked.step is not None:
        raise ConversionError(
            f"{asked.path} holds adapters of others; --stage and --step are of runs"
        )
    base_path = bases.locate(BaseSettings(asked.base)) if asked.base else None
    source = open_source(path, kind, base_path, drop_noise=NOISE not in asked.keep)
    keep = _kept(asked, source.parts, path.name)
    base = _base(asked.base, asked, mesh)
    trees = {BASE: base.params}
    if source.scales is not None:
        trees = {BASE: _added(base.params, source, keep)}
    else:
        trees = _with_parts(base.params, source.parts, keep, mesh)
    subject = _subject(asked, base, trees, source.adapters)
    weights = _digest(base.digest, source.parts, keep, source.adapters, source.scales)
    facts = _facts(hub.label(asked.path), kind, weights, subject)
    return subject, {**facts, "keep": list(keep)}


def _base(path: str, asked: Asked, mesh: Mesh) -> bases.Base:
    """A base model on the mesh."""
    return bases.load(BaseSettings(path=path, dtype=asked.dtype), mesh, seed=0)


def _kept(asked: Asked, parts: Mapping[str, Tree], name: str) -> tuple[str, ...]:
    """The parts to keep, in the order of the decoder."""
    chosen = asked.keep or tuple(part for part in parts if part != NOISE)
    if absent := [part for part in chosen if part not in parts]:
        raise ConversionError(
            f"--keep={','.join(chosen)}: {name} has no {', '.join(absent)}; it has "
            f"{', '.join(parts)}"
        )
    return tuple(part for part in parts if part in chosen)


def _with_parts(
    base: Tree, parts: Mapping[str, Tree], keep: Sequence[str], mesh: Mesh
) -> dict[str, Tree]:
    """Base and kept parts under the names that a decoder gives them."""
    knowledge = {
        path: leaf
        for part in (ATTENTION, KNOWLEDGE)
        if part in keep
        for path, leaf in flatten(parts[part]).items()
    }
    trees = {KNOWLEDGE: unflatten(knowledge)} if knowledge else {}
    trees |= {part: parts[part] for part in keep if part not in (ATTENTION, KNOWLEDGE)}

    def put(path: tuple[Any, ...], leaf: Any) -> jax.Array:
        place = sharding_for(mesh, path_name(path), leaf.shape)
        return jax.device_put(jnp.asarray(leaf), place)

    return {BASE: base} | jax.tree_util.tree_map_with_path(put, trees)


def _added(base: Tree, source: Source, keep: Sequence[str]) -> Tree:
    """The base with each kept delta added in float32: ranks of their own fit no decoder."""
    leaves = flatten(base)
    for owner, deltas in source.deltas(keep).items():
        kernel = leaves[f"{owner}/kernel"]
        total = kernel.astype(jnp.float32)
        for delta in deltas:
            factors = (jnp.asarray(delta.lora_a), jnp.asarray(delta.lora_b))
            total += delta.scale * jnp.matmul(*factors, precision=jax.lax.Precision.HIGHEST)
        leaves[f"{owner}/kernel"] = total.astype(kernel.dtype)
    return unflatten(leaves)


def _subject(
    asked: Asked, base: bases.Base, trees: dict[str, Tree], adapters: AdapterSettings
) -> Subject:
    """A decoder with just the adapters that the trees have."""
    found = {name: halves(tree) for name, tree in trees.items() if name != BASE}
    components = Components(
        attention=tuple(name for name, parts in found.items() if ATTENTION in parts),
        ffn=tuple(name for name, parts in found.items() if KNOWLEDGE in parts),
    )
    compute = ComputeSettings(dtype=asked.dtype, adapter_dtype=asked.dtype, remat="none")
    decoder = Decoder(base.settings, adapters, components, compute)
    return Subject(decoder, merge(trees), base.tokenizer, _end_ids(base.generation_config))


def _end_ids(generation_config: Mapping[str, Any]) -> tuple[int, ...]:
    """The end tokens of generation settings: one, several or none."""
    found = generation_config.get("eos_token_id")
    return tuple(found) if isinstance(found, list) else () if found is None else (int(found),)


def _facts(name: str, kind: str, weights: str, subject: Subject) -> Model:
    """What results say of a model."""
    return {
        "name": name,
        "kind": kind,
        "digest": weights,
        "tokenizer": tokenizer_digest(subject.tokenizer),
        "keep": [],
        "stage": None,
        "step": None,
    }


def _digest(
    base: str,
    parts: Mapping[str, Tree],
    keep: Sequence[str],
    adapters: AdapterSettings,
    scales: Mapping[str, float] | None = None,
) -> str:
    """What stands for a base with adapters; how strong they are is not in their leaves."""
    sizes = json.dumps([dataclasses.asdict(adapters), scales], sort_keys=True)
    leaves = digest({part: parts[part] for part in keep})
    return hashlib.sha256(f"{base}:{leaves}:{sizes}".encode()).hexdigest()
