"""What every part of a run needs at hand."""

import dataclasses
import pathlib

from jax.sharding import Mesh

from medcare_jax.conversion.bases import Base
from medcare_jax.models.aggregators import Components
from medcare_jax.models.decoder import Decoder
from medcare_jax.run.data import RunData
from medcare_jax.run.progress import Display
from medcare_jax.settings import Settings


@dataclasses.dataclass(frozen=True)
class Run:
    """One run in one workdir.

    Attributes:
      settings: As configured.
      workdir: Where everything goes.
      display: What the person sees.
      mesh: The devices.
      base: The base model, on the mesh.
      data: Batches of both stages and the evaluation tasks.
    """

    settings: Settings
    workdir: pathlib.Path
    display: Display
    mesh: Mesh
    base: Base
    data: RunData

    def decoder(self, components: Components) -> Decoder:
        """The base's decoder with some adapters."""
        s = self.settings
        return Decoder(self.base.settings, s.adapters, components, s.compute)
