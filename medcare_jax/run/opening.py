"""Any model that a path names, in the form that generates fastest: all adapters folded in."""

from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp

from medcare_jax.conversion import bases, hub
from medcare_jax.conversion.sources import recognise
from medcare_jax.conversion.tensors import ConversionError
from medcare_jax.models.aggregators import NO_ADAPTERS
from medcare_jax.models.decoder import Decoder
from medcare_jax.models.folding import fold
from medcare_jax.params import NOISE, Tree, merge
from medcare_jax.run.restore import open_model
from medcare_jax.settings import (
    DTYPES,
    AdapterSettings,
    BaseSettings,
    ComputeSettings,
    MeshSettings,
)
from medcare_jax.sharding import make_mesh

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class Opened(NamedTuple):
    """A model ready to generate.

    Attributes:
      name: What a person calls it.
      decoder: Without adapters.
      params: Its parameters on the first device, in the dtype asked for.
      tokenizer: With its chat template.
    """

    name: str
    decoder: Decoder
    params: Tree
    tokenizer: "PreTrainedTokenizerFast"


def open_folded(
    path: str, *, stage: str | None = None, step: int | None = None, dtype: str = "float32"
) -> Opened:
    """The model of a Hugging Face folder, a .gguf file, a hub name, `embedded`, or a run.

    Args:
      path: Names it.
      stage: Of a run; by default the latest that has a checkpoint. The noise is left out.
      step: Of that stage; by default its newest good checkpoint.
      dtype: Of weights and arithmetic.

    Raises:
      FileNotFoundError: Nothing is there.
      ConversionError: Adapters alone, or a stage or step of what is no run.
      CheckpointError, WorkdirError: A run without such a checkpoint, or with another base.
    """
    kind = bases.EMBEDDED if path == bases.EMBEDDED else recognise(hub.locate(path))
    if kind in ("peft", "reference"):
        raise ConversionError(
            f"{path} holds adapters only; make a model of it with tools/convert.py "
            "--to=huggingface, and open that"
        )
    if kind == "run":
        found = open_model(hub.locate(path), stage=stage, step=step)
        trees = {name: tree for name, tree in found.trees.items() if name != NOISE}
        params = fold(merge(trees), found.settings.adapters, dtype=DTYPES[dtype])
        base = found.base
        name = f"{hub.locate(path).name} ({base.name})"
    elif stage or step is not None:
        raise ConversionError(f"{path} is a whole model; --stage and --step are of runs")
    else:
        mesh = make_mesh(MeshSettings(fsdp=1), jax.devices()[:1])
        base = bases.load(BaseSettings(path=path, dtype=dtype), mesh, seed=0)
        params, name = base.params, base.name
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, DTYPES[dtype]), params)
    compute = ComputeSettings(dtype=dtype, adapter_dtype=dtype, remat="none")
    decoder = Decoder(base.settings, AdapterSettings(), NO_ADAPTERS, compute)
    return Opened(name, decoder, params, base.tokenizer)
