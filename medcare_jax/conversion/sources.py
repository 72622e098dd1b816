"""What a conversion starts from: which kind a path is of, and its model in parts that stream."""

import concurrent.futures
import dataclasses
import pathlib
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from medcare_jax import params as trees
from medcare_jax.conversion import rules
from medcare_jax.conversion.bases import base_digest
from medcare_jax.conversion.comparison import StreamedModel
from medcare_jax.conversion.huggingface import load_generation_config, load_tokenizer, open_base
from medcare_jax.conversion.metadata import read_object
from medcare_jax.conversion.peft import CONFIG_NAME, load_peft, read_lora_config
from medcare_jax.conversion.reference import BIN_NAME, load_reference
from medcare_jax.conversion.streams import Delta, Rounding, fold_leaves
from medcare_jax.conversion.tensors import DTYPES, ConversionError, LazyTensor, from_array
from medcare_jax.models.aggregators import ATTENTION_PROJECTIONS, Components
from medcare_jax.models.families import DecoderSettings
from medcare_jax.params import ALIGNMENT, BASE, KNOWLEDGE, NOISE, Tree
from medcare_jax.settings import AdapterSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

ATTENTION = "attention"
PARTS = (ATTENTION, KNOWLEDGE, NOISE, ALIGNMENT)

# What can be made of each kind, in the order in which a path is looked at.
KINDS: dict[str, tuple[str, ...]] = {
    "gguf": ("huggingface", "checkpoint"),
    "run": ("huggingface", "peft", "reference"),
    "reference": ("huggingface", "peft", "checkpoint"),
    "peft": ("huggingface", "checkpoint"),
    "huggingface": ("huggingface", "checkpoint"),
}


@dataclasses.dataclass(frozen=True)
class StreamedBase:
    """A base model whose weights are read when they are needed.

    Attributes:
      name: What cards and reports call it.
      settings: Its architecture.
      leaves: Its parameters by path, stacked layers, in the dtype of the file.
      tokenizer: With chat template if there is one; None if the folder has no tokenizer.
      generation_config: What its exports say of how to generate.
      hashing: Computes `digest` meanwhile.
    """

    name: str
    settings: DecoderSettings
    leaves: Mapping[str, LazyTensor]
    tokenizer: "PreTrainedTokenizerFast | None"
    generation_config: Mapping[str, Any]
    hashing: "concurrent.futures.Future[str]"

    @property
    def digest(self) -> str:
        """The sha256 that stands for its weights, as in checkpoints and cards."""
        return self.hashing.result()


@dataclasses.dataclass(frozen=True)
class Source:
    """A model in parts: base + attention + knowledge + noise + alignment.

    Attributes:
      kind: A key of `KINDS`.
      name: Of the folder or file.
      base: What all parts are added to.
      parts: Adapter trees by part. `attention` and `knowledge` are the knowledge aggregator's
        halves, on the attention and on the FFN.
      adapters: Sizes and scale of the adapters.
      scales: Scale by projection, where it is not `adapters.scale` for all (PEFT).
      is_merged: Whether the attention is rounded into the base before the rest is added.
      facts: More about the source that a report repeats.
    """

    kind: str
    name: str
    base: StreamedBase
    parts: Mapping[str, Tree] = dataclasses.field(default_factory=dict)
    adapters: AdapterSettings = AdapterSettings()
    scales: Mapping[str, float] | None = None
    is_merged: bool = False
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def keep(self, names: Sequence[str] | None, *, is_mixture_possible: bool) -> "Source":
        """The source with the named parts only; by default all that the target can hold.

        Raises:
          ConversionError: A part that the source has not, or the noise where it cannot go.
        """
        chosen = names or [part for part in self.parts if is_mixture_possible or part != NOISE]
        absent = [part for part in chosen if part not in self.parts]
        if absent:
            raise ConversionError(
                f"--keep={','.join(chosen)}: {self.name} has no {', '.join(absent)}; it has "
                f"{', '.join(self.parts) or 'no adapters'}"
            )
        if NOISE in chosen and not is_mixture_possible:
            raise ConversionError(
                "a mixture cannot be folded: the gates of the noise aggregator depend on the "
                "input, so no weight and no LoRA equals it. Either leave it out, as the method "
                f"does (--keep={','.join(part for part in self.parts if part != NOISE)}), or keep "
                "all adapters unfolded (--to=reference)"
            )
        parts = {part: self.parts[part] for part in PARTS if part in chosen}
        return dataclasses.replace(self, parts=parts)

    def merged_base(self) -> dict[str, LazyTensor]:
        """The base, with the attention merged in its own dtype where the run has done so."""
        if not self.is_merged or ATTENTION not in self.parts:
            return dict(self.base.leaves)
        deltas = self.deltas([ATTENTION])
        return fold_leaves(self.base.leaves, deltas, dtype=None, rounding=Rounding())

    def unmerged(self) -> list[str]:
        """The parts that are not in `merged_base`."""
        return [part for part in self.parts if not (self.is_merged and part == ATTENTION)]

    def deltas(self, parts: Iterable[str]) -> dict[str, list[Delta]]:
        """What the parts add, by the path of the projection."""
        found: dict[str, list[Delta]] = {}
        for part in parts:
            leaves = trees.flatten(self.parts[part])
            for owner in (path.rpartition("/")[0] for path in leaves if path.endswith("/lora_a")):
                scale = self.adapters.scale if self.scales is None else self.scales[owner]
                delta = Delta(leaves[f"{owner}/lora_a"], leaves[f"{owner}/lora_b"], scale)
                found.setdefault(owner, []).append(delta)
        return found

    def components(self) -> dict[str, Tree]:
        """The unmerged parts as trees under the names that a decoder gives them."""
        knowledge: dict[str, Any] = {}
        rest = {}
        for part in self.unmerged():
            if part in (ATTENTION, KNOWLEDGE):
                knowledge |= trees.flatten(self.parts[part])
            else:
                rest[part] = self.parts[part]
        return ({KNOWLEDGE: trees.unflatten(knowledge)} if knowledge else {}) | rest

    def live(self) -> StreamedModel:
        """The model with its adapters beside the weights, as it was trained.

        A PEFT adapter's factors have ranks of their own, which a decoder has not: there the model
        is base + scale · A B, in float32 and never rounded.
        """
        if self.scales is not None:
            return unrounded(self.base, self.deltas(self.parts))
        return live_model(self.base.settings, self.merged_base(), self.components(), self.adapters)


def live_model(
    settings: DecoderSettings,
    leaves: Mapping[str, LazyTensor],
    components: Mapping[str, Tree],
    adapters: AdapterSettings,
) -> StreamedModel:
    """Base leaves with adapter trees beside them, as a model that runs."""
    merged = trees.flatten(trees.merge({BASE: trees.unflatten(leaves), **components}))
    lazy = {
        path: leaf if isinstance(leaf, LazyTensor) else from_array(leaf)
        for path, leaf in merged.items()
    }
    return StreamedModel(settings, lazy, adapters, _where(components))


def unrounded(base: StreamedBase, deltas: Mapping[str, Sequence[Delta]]) -> StreamedModel:
    """The base with deltas added in float32."""
    leaves = fold_leaves(base.leaves, deltas, dtype=DTYPES["float32"], rounding=Rounding())
    return StreamedModel(base.settings, leaves)


def recognise(path: pathlib.Path) -> str:
    """Of which kind a path is: a key of `KINDS`.

    Raises:
      FileNotFoundError: Nothing is there.
      ConversionError: None of the kinds.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there")
    if path.suffix == ".gguf" and path.is_file():
        return "gguf"
    if (path / BIN_NAME).exists():
        return "reference"
    if (path / CONFIG_NAME).exists():
        return "peft"
    if (path / "config.json").exists():
        return "huggingface" if "model_type" in read_object(path / "config.json") else "run"
    raise ConversionError(
        f"{path} is of no known kind: expected a .gguf file, or a folder with config.json (a "
        f"Hugging Face model or a run of ours), {BIN_NAME} (the authors' checkpoint) or "
        f"{CONFIG_NAME} (PEFT)"
    )


def stream_base(path: pathlib.Path, *, name: str = "") -> StreamedBase:
    """A base from a Hugging Face folder or a .gguf file; only headers are read, and its digest.

    Raises:
      FileNotFoundError: Not there.
      ConversionError: Tensors missing, unexpected or of another shape; broken files.
    """
    settings, tensors = open_base(path)
    return StreamedBase(
        name or path.name,
        settings,
        base_leaves(settings, tensors, what=str(path)),
        _tokenizer(path),
        load_generation_config(path),
        in_background(lambda: base_digest(path)),
    )


def in_background(work: Callable[[], str]) -> "concurrent.futures.Future[str]":
    """Work that is done by a thread of its own, which does not keep the process from ending."""
    future: concurrent.futures.Future[str] = concurrent.futures.Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def base_leaves(
    settings: DecoderSettings, tensors: Mapping[str, LazyTensor], *, what: str
) -> dict[str, LazyTensor]:
    """The leaves of a base from its file's tensors."""
    return rules.to_leaves(
        rules.decoder_rules(settings),
        tensors,
        sizes=rules.letter_sizes(settings),
        num_layers=settings.num_layers,
        what=what,
    )


def open_source(
    path: pathlib.Path, kind: str, base: pathlib.Path | None, *, drop_noise: bool = False
) -> Source:
    """A source of any kind but our own runs.

    Args:
      path: The source.
      kind: A key of `KINDS`.
      base: Of an adapter; None if the source is a whole model.
      drop_noise: Do not read the noise of a stage-1 folder, which may lack its routers.

    Raises:
      ConversionError: No base for an adapter; and what the readers of the formats raise.
    """
    if kind in ("huggingface", "gguf"):
        return Source(kind, path.name, stream_base(path))
    if base is None:
        raise ConversionError(f"{path} holds adapters only; name their base with --base=PATH")
    streamed = stream_base(base)
    if kind == "peft":
        tree, scales = load_peft(path, streamed.settings)
        lora = read_lora_config(path)
        adapters = AdapterSettings(
            rank=lora.rank, alpha=lora.alpha, use_rslora=lora.use_rslora, dropout=lora.dropout
        )
        return Source(kind, path.name, streamed, halves(tree), adapters, scales)
    adapters, found = load_reference(path, streamed.settings, drop_noise=drop_noise)
    parts = halves(found.pop(KNOWLEDGE)) | found
    return Source(kind, path.name, streamed, parts, adapters)


def halves(knowledge: Tree) -> dict[str, Tree]:
    """A knowledge tree's attention and FFN parts, as far as it has them."""
    found: dict[str, dict[str, Any]] = {ATTENTION: {}, KNOWLEDGE: {}}
    for path, leaf in trees.flatten(knowledge).items():
        part = ATTENTION if path.split("/")[-2] in ATTENTION_PROJECTIONS else KNOWLEDGE
        found[part][path] = leaf
    return {part: trees.unflatten(leaves) for part, leaves in found.items() if leaves}


def _where(components: Mapping[str, Tree]) -> Components:
    """Which adapters the attention and the FFN of these trees carry."""
    found = {name: halves(tree) for name, tree in components.items()}
    return Components(
        attention=tuple(name for name, parts in found.items() if ATTENTION in parts),
        ffn=tuple(name for name, parts in found.items() if KNOWLEDGE in parts),
    )


def _tokenizer(path: pathlib.Path) -> "PreTrainedTokenizerFast | None":
    """The tokenizer of a base, or None if its folder has none at all."""
    names = ("tokenizer.json", "vocab.json", "tokenizer.model")
    if path.is_dir() and not any((path / name).exists() for name in names):
        return None
    return load_tokenizer(path)
