"""Workdirs as the job leaves them, written in a second instead of trained in a minute."""

import dataclasses
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np

from configs import tiny
from medcare_jax.checkpoints import Checkpoints
from medcare_jax.conversion import bases, rules
from medcare_jax.conversion.huggingface import save_huggingface
from medcare_jax.conversion.tensors import from_array
from medcare_jax.files import write_json
from medcare_jax.models.aggregators import Components
from medcare_jax.models.decoder import Decoder
from medcare_jax.models.families import DecoderSettings, decoder_settings
from medcare_jax.params import ALIGNMENT, KNOWLEDGE, NOISE, digest, unflatten
from medcare_jax.run.facts import run_facts
from medcare_jax.settings import MeshSettings, Settings, make_settings
from medcare_jax.sharding import make_mesh
from medcare_jax.training.optimizer import make_optimizer
from medcare_jax.training.stages import MKA, alignment_stage, init_adapters
from medcare_jax.training.step import make_state

MKA_STEPS, DA_STEPS = (2, 3), (1, 4)


def write_base(folder: pathlib.Path) -> pathlib.Path:
    """The base of the tiny config as a folder, with a tokenizer; random, but nothing compiled."""
    settings = decoder_settings(tiny.get_config().base.random)
    sizes, random = rules.letter_sizes(settings), np.random.default_rng(0)
    leaves = {
        rule.leaf: (0.1 * random.standard_normal(_stacked(rule, settings, sizes))).astype("float32")
        for rule in rules.decoder_rules(settings)
    }
    tokenizer = bases.byte_tokenizer()
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    params = unflatten({path: from_array(leaf) for path, leaf in leaves.items()})
    save_huggingface(folder, settings, params, tokenizer, generation_config=ends)
    return folder


def _stacked(rule: rules.Rule, settings: DecoderSettings, sizes: dict[str, int]) -> tuple[int, ...]:
    """Shape of a leaf, layers included."""
    leading = (settings.num_layers,) if "{layer}" in rule.source else ()
    return leading + rule.leaf_shape(sizes)


class Made(NamedTuple):
    """What a workdir holds."""

    workdir: pathlib.Path
    settings: Settings
    base: bases.Base
    trees: dict[tuple[str, int], dict[str, Any]]


def make_workdir(
    workdir: pathlib.Path, base: Any = None, *, dtype: str = "float32", **constraint: Any
) -> Made:
    """A finished tiny run: mka after steps 2 and 3 (its last), da after steps 1 and 4."""
    config = tiny.get_config()
    config.base.dtype = dtype
    if base is not None:
        config.base.path = str(base)
    config.constraint.update(constraint)
    settings = make_settings(config)
    workdir.mkdir(parents=True)
    write_json(workdir / "config.json", dataclasses.asdict(settings))
    mesh = make_mesh(MeshSettings(fsdp=1), jax.devices()[:1])
    with jax.set_mesh(mesh):
        loaded = bases.load(settings.base, mesh, seed=settings.seed)
        da = alignment_stage(settings.adapters, settings.constraint)
        trees, known = {}, None
        for stage, steps in ((MKA, MKA_STEPS), (da, DA_STEPS)):
            folder = workdir / stage.name / "checkpoints"
            with Checkpoints(folder, keep=3) as checkpoints:
                for step in steps:
                    learning = _random(loaded, settings, stage.components, step)
                    learning = {name: learning[name] for name in stage.learning}
                    trees[stage.name, step] = learning
                    optimizer = make_optimizer(settings.mka, 3, constraint=None)
                    state = make_state(learning, optimizer, jax.random.key(1), {})
                    meta = run_facts(
                        settings,
                        settings.mka,
                        None if stage is MKA else settings.constraint,
                        base_digest=loaded.digest,
                        fingerprint="",
                        steps=steps[-1],
                        knowledge_digest=known,
                    )
                    checkpoints.save(step, state, meta)
            known = digest(learning[KNOWLEDGE]) if stage is MKA else None
    return Made(workdir, settings, loaded, trees)


def _random(
    base: bases.Base, settings: Settings, components: Components, step: int
) -> dict[str, Any]:
    """Adapter trees with every leaf random, B included."""
    decoder = Decoder(base.settings, settings.adapters, components, settings.compute)
    random = np.random.default_rng(step)
    trees = init_adapters(decoder, jax.random.key(step))
    assert trees.keys() <= {KNOWLEDGE, NOISE, ALIGNMENT}
    return jax.tree.map(
        lambda leaf: jax.numpy.asarray(0.1 * random.standard_normal(leaf.shape), leaf.dtype), trees
    )
