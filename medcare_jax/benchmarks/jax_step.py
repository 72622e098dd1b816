"""This project's contender: the step that a run compiles, on one device as PyTorch's are."""

import jax
import jax.numpy as jnp
import numpy as np

from medcare_jax.benchmarks.job import Contender, Job
from medcare_jax.benchmarks.weights import draw, draw_tokens
from medcare_jax.data.packing import Batch
from medcare_jax.models.decoder import Decoder
from medcare_jax.models.families import decoder_settings
from medcare_jax.params import BASE, Tree, count, flatten, merge, split, unflatten
from medcare_jax.settings import DTYPES, Settings, make_settings
from medcare_jax.sharding import batch_sharding, make_mesh, sharding_for, tree_shardings
from medcare_jax.training.loop import jit_step
from medcare_jax.training.optimizer import make_optimizer
from medcare_jax.training.stages import MKA
from medcare_jax.training.step import TrainState, make_state, make_train_step


def build(job: Job) -> Contender:
    """The MKA step of this project, compiled before its weights are made.

    The compiler needs most of a gigabyte for a while; weights that lie beside it then would count
    that as the step's.
    """
    settings = make_settings(job.config)
    decoder = Decoder(
        decoder_settings(settings.base.random), settings.adapters, MKA.components, settings.compute
    )
    mesh = make_mesh(settings.mesh, jax.devices()[:1])
    jax.set_mesh(mesh)
    optimizer = make_optimizer(settings.mka, len(job.rates), constraint=None)
    step = make_train_step(
        decoder,
        optimizer,
        None,
        accumulation=settings.data.accumulation,
        loss_chunk=settings.compute.loss_chunk,
    )

    def begin(trees: dict[str, Tree]) -> TrainState:
        return make_state(trees, optimizer, jax.random.key(settings.seed), {})

    learning = split(abstract_params(decoder, settings))
    frozen = {BASE: learning.pop(BASE)}
    places = tree_shardings(mesh, abstract := jax.eval_shape(begin, learning))
    frozen_places = tree_shardings(mesh, frozen)
    batch = make_batch(job, decoder)
    compiled = jit_step(step, places, frozen_places, mesh).lower(abstract, frozen, batch).compile()

    trees = split(make_params(decoder, settings, mesh))
    frozen = {BASE: trees.pop(BASE)}
    state = jax.device_put(begin(trees), places)
    batch = jax.device_put(batch, batch_sharding(mesh))

    def advance() -> float:
        nonlocal state
        state, metrics = jax.block_until_ready(compiled(state, frozen, batch))
        return float(metrics.loss)

    return Contender(
        advance, jax.devices()[0].device_kind, _peak_device_bytes, count(state.learning)
    )


def abstract_params(decoder: Decoder, settings: Settings) -> Tree:
    """Shapes of all parameters, the base in its own dtype."""
    ones = jnp.ones((1, 1), jnp.int32)
    shapes = jax.eval_shape(decoder.init, jax.random.key(0), ones, ones, ones)["params"]
    trees = split(shapes)
    trees[BASE] = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, DTYPES[settings.base.dtype]), trees[BASE]
    )
    return merge(trees)


def make_params(decoder: Decoder, settings: Settings, mesh: jax.sharding.Mesh) -> Tree:
    """All parameters on the mesh, one leaf on the host at a time."""

    def make(path: str, abstract: jax.ShapeDtypeStruct) -> jax.Array:
        leaf = np.empty(abstract.shape, abstract.dtype)
        if path.startswith("model/layers/"):
            for layer, part in enumerate(leaf):
                part[...] = draw(settings.seed, path, layer, part.shape)
        else:
            leaf[...] = draw(settings.seed, path, 0, leaf.shape)
        return jax.device_put(leaf, sharding_for(mesh, path, leaf.shape))

    shapes = flatten(abstract_params(decoder, settings))
    return unflatten({path: make(path, leaf) for path, leaf in shapes.items()})


def make_batch(job: Job, decoder: Decoder) -> Batch:
    """Rows of one dialogue each, every token but the first a target."""
    seed = job.config["seed"]
    tokens = draw_tokens(seed, job.batch_shape, decoder.settings.vocab_size)
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    return Batch(tokens, positions, np.ones_like(tokens), positions > 0)


def _peak_device_bytes() -> int | None:
    """The most that the device held; a CPU keeps no count."""
    counts = jax.devices()[0].memory_stats()
    return int(counts["peak_bytes_in_use"]) if counts else None
