"""`medcare_jax` as a model of lm-evaluation-harness, from `--model_args pretrained=PATH`."""

import difflib
import inspect
from collections.abc import Iterable
from typing import Any

import jax
from lm_eval.api.instance import Instance
from lm_eval.api.registry import register_model

from medcare_jax.evaluation.harness import DecoderLM
from medcare_jax.run.subjects import Asked, open_subject
from medcare_jax.settings import MeshSettings
from medcare_jax.sharding import make_mesh

# What the harness adds to every model's arguments.
_OF_THE_HARNESS = ("device", "max_batch_size", "trust_remote_code")
_ROWS = 8  # where the harness is left to choose


@register_model("medcare_jax")
class OpenedLM(DecoderLM):
    """Any model that `tools/evaluate.py` takes, its adapters live."""

    def __init__(
        self,
        pretrained: str,
        base: str = "",
        keep: str = "",
        stage: str = "",
        step: int | None = None,
        dtype: str = "float32",
        batch_size: int | str | None = None,
        max_length: int | None = None,
        **others: Any,
    ) -> None:
        """Reads the model onto all devices.

        Args:
          pretrained: A Hugging Face folder, a .gguf file, `embedded`, a name of the hub, a run's
            workdir, or adapters with `base`.
          base: Base model of adapters.
          keep: Parts joined by `+`, as `attention+knowledge`; empty: all but the noise.
          stage: Of a run; empty: its latest.
          step: Of that stage; None: its newest good checkpoint.
          dtype: Of weights and arithmetic.
          batch_size: Rows at once; `auto` is 8.
          max_length: Tokens read at once; None: the model's context.
          others: What the harness says to every model, of devices that jax finds itself.

        Raises:
          ValueError: An argument that neither this model nor the harness knows.
        """
        _check_names(others)
        asked = Asked(
            path=str(pretrained),
            base=base,
            keep=tuple(part for part in keep.split("+") if part),
            stage=stage,
            step=step,
            dtype=dtype,
        )
        self._mesh = make_mesh(MeshSettings())
        with jax.set_mesh(self._mesh):
            subject, _ = open_subject(asked, self._mesh)
        super().__init__(
            subject.decoder,
            subject.params,
            subject.tokenizer,
            batch_size=int(batch_size) if str(batch_size).isdigit() else _ROWS,
            max_length=max_length,
            end_ids=subject.end_ids,
        )

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """As `DecoderLM`, on the mesh."""
        with jax.set_mesh(self._mesh):
            scores: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm)
        return scores

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """As `DecoderLM`, on the mesh."""
        with jax.set_mesh(self._mesh):
            return super().loglikelihood_rolling(requests, disable_tqdm)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """As `DecoderLM`, on the mesh."""
        with jax.set_mesh(self._mesh):
            return super().generate_until(requests, disable_tqdm)


def _check_names(others: Iterable[str]) -> None:
    """Raises for what is misspelt in `--model_args`, which would otherwise change nothing."""
    known = [name for name in inspect.signature(OpenedLM).parameters if name != "others"]
    for name in others:
        if name not in _OF_THE_HARNESS:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(
                f"--model_args: medcare_jax knows no {name}; it knows {', '.join(known)}{hint}"
            )
