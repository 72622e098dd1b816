"""Names, layouts and shapes: one table per model family, used in both directions.

A row says how one Hugging Face tensor and one leaf of our tree are related:

    Rule("model.layers.{layer}.mlp.up_proj.weight", "model/layers/mlp/up_proj/kernel",
         Op.TRANSPOSE, "d f")

`{layer}` makes it one row for all layers: our leaf has a leading axis l that stacks them. The last
column is the shape of our leaf in letters, without l. A family is added by adding its table.
"""

import dataclasses
import enum
from collections.abc import Iterable, Iterator, Mapping

from medcare_jax.conversion.tensors import (
    ConversionError,
    LazyTensor,
    Shape,
    stack,
    transpose,
    unstack,
)
from medcare_jax.models.families import DecoderSettings


class Op(enum.Enum):
    """What is done to a tensor's values; each is its own inverse."""

    COPY = "copy"
    TRANSPOSE = "transpose"

    def __call__(self, tensor: LazyTensor) -> LazyTensor:
        """The tensor in the other layout."""
        return transpose(tensor) if self is Op.TRANSPOSE else tensor


@dataclasses.dataclass(frozen=True)
class Rule:
    """One row of a table.

    Attributes:
      source: Name of the tensor in the file, with `{layer}` if there is one per layer.
      leaf: Path of the leaf in our tree.
      op: From one layout to the other.
      shape: Shape of the leaf in letters, without the leading l.
    """

    source: str
    leaf: str
    op: Op
    shape: str

    def sources(self, num_layers: int) -> list[str]:
        """The names of all tensors that make up the leaf.

        >>> Rule("h.{layer}.norm", "h/norm", Op.COPY, "d").sources(2)
        ['h.0.norm', 'h.1.norm']
        """
        if "{layer}" not in self.source:
            return [self.source]
        return [self.source.replace("{layer}", str(layer)) for layer in range(num_layers)]

    def leaf_shape(self, sizes: Mapping[str, int]) -> Shape:
        """Shape of one layer of the leaf."""
        return tuple(sizes[letter] for letter in self.shape.split())

    def file_shape(self, sizes: Mapping[str, int]) -> Shape:
        """Shape of one tensor in the file."""
        shape = self.leaf_shape(sizes)
        return shape[::-1] if self.op is Op.TRANSPOSE else shape


def module_name(path: str) -> str:
    """The torch module of a projection, in a table's notation.

    >>> module_name("model/layers/mlp/up_proj")
    'model.layers.{layer}.mlp.up_proj'
    """
    return path.replace("model/layers/", "model/layers/{layer}/").replace("/", ".")


def module_names(path: str, num_layers: int) -> list[str]:
    """The torch modules of a projection, one per layer.

    >>> module_names("model/layers/mlp/up_proj", 2)
    ['model.layers.0.mlp.up_proj', 'model.layers.1.mlp.up_proj']
    """
    name = module_name(path)
    return [name.replace("{layer}", str(layer)) for layer in range(num_layers)]


def _projection(name: str, shape: str) -> Rule:
    """A linear layer's weight: torch keeps [out, in]."""
    path = f"model/layers/{name.replace('.', '/')}"
    return Rule(f"{module_name(path)}.weight", f"{path}/kernel", Op.TRANSPOSE, shape)


def _vector(name: str, file_leaf: str, leaf: str, shape: str) -> Rule:
    """A layer's norm scale or bias."""
    path = f"model/layers/{name.replace('.', '/')}"
    return Rule(f"{module_name(path)}.{file_leaf}", f"{path}/{leaf}", Op.COPY, shape)


_OUTPUT = Rule("lm_head.weight", "lm_head/kernel", Op.TRANSPOSE, "d v")

_DECODER = (
    Rule("model.embed_tokens.weight", "model/embed_tokens/embedding", Op.COPY, "v d"),
    _vector("input_layernorm", "weight", "scale", "d"),
    _projection("self_attn.q_proj", "d nh"),
    _projection("self_attn.k_proj", "d kh"),
    _projection("self_attn.v_proj", "d kh"),
    _projection("self_attn.o_proj", "nh d"),
    _vector("post_attention_layernorm", "weight", "scale", "d"),
    _projection("mlp.gate_proj", "d f"),
    _projection("mlp.up_proj", "d f"),
    _projection("mlp.down_proj", "f d"),
    Rule("model.norm.weight", "model/norm/scale", Op.COPY, "d"),
    _OUTPUT,
)

TABLES: dict[str, tuple[Rule, ...]] = {
    "llama": _DECODER,
    "qwen2": (
        *_DECODER,
        _vector("self_attn.q_proj", "bias", "bias", "nh"),
        _vector("self_attn.k_proj", "bias", "bias", "kh"),
        _vector("self_attn.v_proj", "bias", "bias", "kh"),
    ),
    "qwen3": (
        *_DECODER,
        _vector("self_attn.q_norm", "weight", "scale", "h"),
        _vector("self_attn.k_norm", "weight", "scale", "h"),
    ),
}


def decoder_rules(settings: DecoderSettings) -> tuple[Rule, ...]:
    """The rows for a base model; without the output matrix if it is tied to the embedding."""
    rules = TABLES[settings.family]
    return tuple(rule for rule in rules if not (settings.tie_word_embeddings and rule is _OUTPUT))


def letter_sizes(settings: DecoderSettings) -> dict[str, int]:
    """What the letters of the shape column stand for."""
    return {
        "v": settings.vocab_size,
        "d": settings.hidden_size,
        "f": settings.intermediate_size,
        "h": settings.head_dim,
        "nh": settings.num_heads * settings.head_dim,
        "kh": settings.num_kv_heads * settings.head_dim,
    }


def projections(settings: DecoderSettings) -> dict[str, tuple[str, str]]:
    """The seven projections that adapters sit on: path to the letters of input and output width.

    >>> from medcare_jax.models.families import decoder_settings
    >>> config = {"model_type": "llama", "vocab_size": 9, "hidden_size": 8, "head_dim": 2,
    ...   "intermediate_size": 7, "num_hidden_layers": 1, "num_attention_heads": 2,
    ...   "rms_norm_eps": 1e-6, "max_position_embeddings": 16}
    >>> projections(decoder_settings(config))["model/layers/self_attn/o_proj"]
    ('nh', 'd')
    """
    widths = {}
    for rule in TABLES[settings.family]:
        if rule.op is Op.TRANSPOSE and "{layer}" in rule.source:
            first, second = rule.shape.split()
            widths[rule.leaf.removesuffix("/kernel")] = (first, second)
    return widths


def to_leaves(
    rules: Iterable[Rule],
    tensors: Mapping[str, LazyTensor],
    *,
    sizes: Mapping[str, int],
    num_layers: int,
    what: str,
) -> dict[str, LazyTensor]:
    """File tensors to the leaves of our tree, by path.

    Args:
      rules: The table.
      tensors: Tensors by their name in the file.
      sizes: What the letters of the shape column stand for.
      num_layers: How many layers to stack (l).
      what: What is being read; opens the error message.

    Returns:
      Lazy leaves; a leaf with layers has shape [l, ...].

    Raises:
      ConversionError: Names or shapes differ from the table's; lists all of them, both ways.
    """
    rules = tuple(rules)
    expected = {name: rule.file_shape(sizes) for rule in rules for name in rule.sources(num_layers)}
    compare(expected, tensors, what=what)
    return {rule.leaf: _leaf(rule, tensors, num_layers) for rule in rules}


def to_tensors(
    rules: Iterable[Rule],
    leaves: Mapping[str, LazyTensor],
    *,
    sizes: Mapping[str, int],
    num_layers: int,
    what: str,
) -> dict[str, LazyTensor]:
    """The leaves of our tree to file tensors, by name, layer after layer; inverts `to_leaves`.

    Raises:
      ConversionError: Paths or shapes differ from the table's; lists all of them, both ways.
    """
    rules = tuple(rules)
    expected = {
        rule.leaf: ((num_layers,) if "{layer}" in rule.source else ()) + rule.leaf_shape(sizes)
        for rule in rules
    }
    compare(expected, leaves, what=what)
    placed = sorted(
        (
            (layer, position, name, part)
            for position, rule in enumerate(rules)
            for layer, name, part in _parts(rule, leaves[rule.leaf], num_layers)
        ),
        key=lambda entry: entry[:2],
    )
    return {name: part for _, _, name, part in placed}


def compare(
    expected: Mapping[str, Shape], found: Mapping[str, LazyTensor], *, what: str, limit: int = 30
) -> None:
    """Raises one screen that lists every difference in names and shapes, both ways, sorted.

    Args:
      expected: Names and shapes that there should be.
      found: What there is.
      what: What is being compared; opens the message.
      limit: Most lines to list.

    >>> compare({"a": (2,), "b": (3,)}, {}, what="FILE")
    Traceback (most recent call last):
    medcare_jax.conversion.tensors.ConversionError: FILE: 2 missing (-), 0 unexpected (+), \
0 of another shape (!), of 2 expected
      - a [2]
      - b [3]
    """
    missing = {name: f"- {name} {_text(expected[name])}" for name in expected.keys() - found}
    unexpected = {name: f"+ {name} {_text(found[name].shape)}" for name in found.keys() - expected}
    misshapen = {
        name: f"! {name} expected {_text(shape)}, found {_text(found[name].shape)}"
        for name, shape in expected.items()
        if name in found and found[name].shape != shape
    }
    lines = missing | unexpected | misshapen
    if lines:
        listed = [f"  {lines[name]}" for name in sorted(lines)[:limit]]
        rest = [f"  ... and {len(lines) - limit} more"] if len(lines) > limit else []
        head = (
            f"{what}: {len(missing)} missing (-), {len(unexpected)} unexpected (+), "
            f"{len(misshapen)} of another shape (!), of {len(expected)} expected"
        )
        raise ConversionError("\n".join([head, *listed, *rest]))


def _leaf(rule: Rule, tensors: Mapping[str, LazyTensor], num_layers: int) -> LazyTensor:
    """The leaf that a rule makes of file tensors."""
    parts = [rule.op(tensors[name]) for name in rule.sources(num_layers)]
    if "{layer}" not in rule.source:
        return parts[0]
    dtypes = sorted({str(part.dtype) for part in parts})
    if len(dtypes) > 1:
        raise ConversionError(
            f"{rule.source} is {' in some layers and '.join(dtypes)} in others; expected one dtype"
        )
    return stack(parts)


def _parts(rule: Rule, leaf: LazyTensor, num_layers: int) -> Iterator[tuple[int, str, LazyTensor]]:
    """The file tensors that a rule makes of a leaf, with their layer (-1 if outside of layers)."""
    if "{layer}" not in rule.source:
        yield -1, rule.source, rule.op(leaf)
        return
    for layer, (name, part) in enumerate(zip(rule.sources(num_layers), unstack(leaf), strict=True)):
        yield layer, name, rule.op(part)


def _text(shape: Shape) -> str:
    """A shape as printed in messages."""
    return "[" + ", ".join(map(str, shape)) + "]"
