"""Frozen settings made once from a ConfigDict, with every rule that needs no data or devices."""

import dataclasses
import difflib
import math
from collections.abc import Mapping
from typing import Any, get_args, get_origin

import jax.numpy as jnp

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}


class SettingsError(ValueError):
    """A config key or value that cannot be used; the message says where and what is allowed."""


def _choose(where: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raises unless the value is one of those allowed."""
    if value not in allowed:
        raise SettingsError(f"{where} = {value!r}; allowed are {', '.join(allowed)}")


def _at_least(where: str, value: float, least: float) -> None:
    """Raises if the value is too small, or no finite number: NaN fails both comparisons."""
    if not least <= value < math.inf:
        raise SettingsError(f"{where} = {value}; must be at least {least}, and finite")


def _above(where: str, value: float, bound: float) -> None:
    """Raises unless the value is finite and larger than the bound."""
    if not bound < value < math.inf:
        raise SettingsError(f"{where} = {value}; must be above {bound}, and finite")


def _share(where: str, value: float) -> None:
    """Raises unless the value is a share that is not the whole."""
    if not 0 <= value < 1:
        raise SettingsError(f"{where} = {value}; must be in [0, 1)")


@dataclasses.dataclass(frozen=True)
class BaseSettings:
    """The frozen base model; fields as in configs/base.py."""

    path: str
    dtype: str = "bfloat16"
    random: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        _choose("dtype", self.dtype, tuple(DTYPES))
        if not self.path:
            raise SettingsError(
                "path is not set; name a Hugging Face folder, a .gguf file or 'embedded'"
            )


ATTENTION_KERNELS = ("auto", "xla", "blocks", "cudnn", "splash")
REMAT_POLICIES = ("full", "attention", "qkv", "ffn", "products", "none")
"""From least memory to least time; models/decoder.py says what each keeps."""


@dataclasses.dataclass(frozen=True)
class ComputeSettings:
    """Precision, recomputation and kernels of the step; fields as in configs/base.py."""

    dtype: str = "bfloat16"
    adapter_dtype: str = "bfloat16"
    remat: str = "full"
    attention: str = "auto"
    loss_chunk: int = 256

    def __post_init__(self) -> None:
        _choose("dtype", self.dtype, tuple(DTYPES))
        _choose("adapter_dtype", self.adapter_dtype, tuple(DTYPES))
        _choose("remat", self.remat, REMAT_POLICIES)
        _choose("attention", self.attention, ATTENTION_KERNELS)
        _at_least("loss_chunk", self.loss_chunk, 1)


@dataclasses.dataclass(frozen=True)
class MeshSettings:
    """How many ways each mesh axis cuts; fields as in configs/base.py."""

    data: int = 1
    fsdp: int = -1
    tensor: int = 1
    replicated_budget_mib: float = 256

    def __post_init__(self) -> None:
        sizes = (self.data, self.fsdp, self.tensor)
        if any(size == 0 or size < -1 for size in sizes) or sizes.count(-1) > 1:
            raise SettingsError(
                f"data, fsdp, tensor = {sizes}; each at least 1, and at most one -1"
            )
        _at_least("replicated_budget_mib", self.replicated_budget_mib, 0)


@dataclasses.dataclass(frozen=True)
class AdapterSettings:
    """Sizes and scale of the adapters; fields as in configs/base.py."""

    rank: int = 16
    alpha: float = 32.0
    use_rslora: bool = False
    shared_experts: int = 2
    experts: int = 8
    experts_per_token: int = 2
    dropout: float = 0.05
    alignment_on_attention: bool = False

    def __post_init__(self) -> None:
        for name in ("rank", "shared_experts", "experts", "experts_per_token"):
            _at_least(name, getattr(self, name), 1)
        _above("alpha", self.alpha, 0)
        if self.experts_per_token > self.experts:
            raise SettingsError(
                f"experts_per_token = {self.experts_per_token} is more than "
                f"experts = {self.experts}"
            )
        _share("dropout", self.dropout)

    @property
    def scale(self) -> float:
        """What every adapter's output is multiplied by: alpha / r, or alpha / sqrt(r)."""
        return self.alpha / (self.rank**0.5 if self.use_rslora else self.rank)

    def rank_of(self, component: str, *, is_attention: bool) -> int:
        """Rank of a component on one projection; the scale does not depend on it.

        >>> AdapterSettings(rank=16).rank_of("knowledge", is_attention=False)
        32
        """
        if component == "noise":
            return self.rank * self.experts
        is_narrow = component == "knowledge" and is_attention
        return self.rank if is_narrow else self.rank * self.shared_experts


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """From records to packed rows, for both stages; fields as in configs/base.py."""

    row_length: int = 3072
    rows: int = 128
    accumulation: int = 1
    targets: str = "assistant"
    over_long: str = "drop"
    on_bad_record: str = "stop"
    check_overlap: bool = True

    def __post_init__(self) -> None:
        for name, least in (("row_length", 2), ("rows", 1), ("accumulation", 1)):
            _at_least(name, getattr(self, name), least)
        _choose("targets", self.targets, ("assistant", "reference"))
        _choose("over_long", self.over_long, ("drop", "cut"))
        _choose("on_bad_record", self.on_bad_record, ("stop", "skip"))
        if self.rows % self.accumulation:
            raise SettingsError(
                f"rows = {self.rows} is not a multiple of accumulation = {self.accumulation}"
            )


@dataclasses.dataclass(frozen=True)
class Icd10Settings:
    """The demo's tasks, made from ICD-10-CM; fields as in configs/base.py."""

    make: bool = False
    mka_knowledge: int = 800
    mka_alignment: int = 240
    da_alignment: int = 320
    test: int = 120

    def __post_init__(self) -> None:
        for field in ("mka_knowledge", "mka_alignment", "da_alignment", "test"):
            _at_least(field, getattr(self, field), 0)


@dataclasses.dataclass(frozen=True)
class StageSettings:
    """Data and optimiser of one stage; fields as in configs/base.py."""

    files: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    epochs: int = 1
    max_steps: int = 0
    learning_rate: float = 2e-4
    warmup_share: float = 0.03
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    adam_b1: float = 0.9
    adam_b2: float = 0.999
    max_skipped: int = 3

    def __post_init__(self) -> None:
        _at_least("epochs", self.epochs, 1)
        _at_least("max_steps", self.max_steps, 0)
        _at_least("max_skipped", self.max_skipped, 0)
        for name in ("learning_rate", "weight_decay", "clip_norm"):
            _at_least(name, getattr(self, name), 0)
        for name in ("adam_b1", "adam_b2"):
            _share(name, getattr(self, name))
        for weight in self.weights:
            _above("weights", weight, 0)
        if not 0 <= self.warmup_share <= 1:
            raise SettingsError(f"warmup_share = {self.warmup_share}; must be in [0, 1]")
        if self.weights and len(self.weights) != len(self.files):
            raise SettingsError(
                f"weights has {len(self.weights)} entries for {len(self.files)} files; one for each"
            )


@dataclasses.dataclass(frozen=True)
class ConstraintSettings:
    """What keeps the alignment off the knowledge; fields as in configs/base.py."""

    kind: str = "projection"
    basis: str = "activation"
    side: str = "input"
    energy: float = 0.5
    activation_batches: int = 16
    strength: float = 1.0
    retract_every: int = 0
    penalty_weight: float = 1.0
    penalty_norm: str = "l1"
    freeze_knowledge: bool = True
    tolerance: float = 1e-5

    def __post_init__(self) -> None:
        kinds = ("projection", "penalty", "projection+penalty", "none")
        _choose("kind", self.kind, kinds)
        _choose("basis", self.basis, ("span", "svd", "activation"))
        _choose("side", self.side, ("input", "output", "both"))
        _choose("penalty_norm", self.penalty_norm, ("l1", "frobenius", "cosine"))
        _above("tolerance", self.tolerance, 0)
        _at_least("penalty_weight", self.penalty_weight, 0)
        _at_least("activation_batches", self.activation_batches, 1)
        _at_least("retract_every", self.retract_every, 0)
        if not 0 < self.energy <= 1:
            raise SettingsError(f"energy = {self.energy}; must be in (0, 1]")
        if not 0 <= self.strength <= 1:
            raise SettingsError(f"strength = {self.strength}; must be in [0, 1]")
        if self.retract_every and (self.strength < 1 or not self.use_projection):
            raise SettingsError(
                f"retract_every = {self.retract_every} with kind = {self.kind!r} and strength = "
                f"{self.strength}; a retraction needs a projection of strength 1, or set it to 0"
            )
        if self.use_penalty and self.penalty_weight <= 0:
            raise SettingsError(
                f"penalty_weight = {self.penalty_weight} with kind = {self.kind!r}; "
                "must be above 0, or choose another kind"
            )

    @property
    def needs_data(self) -> bool:
        """Whether data have to be read at the hand-over, to find what is protected."""
        return self.basis == "activation" and self.kind != "none"

    @property
    def use_projection(self) -> bool:
        """Whether updates are projected."""
        return "projection" in self.kind

    @property
    def is_exact(self) -> bool:
        """Whether the alignment stays in the complement, up to rounding."""
        return self.use_projection and self.strength == 1

    @property
    def use_penalty(self) -> bool:
        """Whether the overlap is added to the loss."""
        return "penalty" in self.kind


@dataclasses.dataclass(frozen=True)
class CheckpointSettings:
    """When a run is saved; fields as in configs/base.py."""

    every_steps: int = 100
    keep: int = 3
    grace_seconds: float = 30.0

    def __post_init__(self) -> None:
        for name, least in (("every_steps", 1), ("keep", 2), ("grace_seconds", 0)):
            _at_least(name, getattr(self, name), least)


@dataclasses.dataclass(frozen=True)
class EvaluationSettings:
    """What is scored, and how; fields as in configs/base.py."""

    folder: str = ""
    tasks: tuple[str, ...] = ()
    limit: int = 0
    batch: int = 16
    max_new_tokens: int = 128
    protocols: tuple[str, ...] = ("likelihood",)
    rules: str = "reference"
    write_samples: bool = False

    def __post_init__(self) -> None:
        _at_least("limit", self.limit, 0)
        _at_least("batch", self.batch, 1)
        _at_least("max_new_tokens", self.max_new_tokens, 1)
        for protocol in self.protocols:
            _choose("protocols", protocol, ("generate", "likelihood"))
        _choose("rules", self.rules, ("reference", "strict"))


@dataclasses.dataclass(frozen=True)
class ExportSettings:
    """How the finished model is written; fields as in configs/base.py."""

    dtype: str = "bfloat16"
    shard_gib: float = 5.0

    def __post_init__(self) -> None:
        _choose("dtype", self.dtype, tuple(DTYPES))
        _above("shard_gib", self.shard_gib, 0)


@dataclasses.dataclass(frozen=True)
class Settings:
    """A whole run."""

    base: BaseSettings
    compute: ComputeSettings
    mesh: MeshSettings
    adapters: AdapterSettings
    data: DataSettings
    icd10: Icd10Settings
    mka: StageSettings
    da: StageSettings
    constraint: ConstraintSettings
    checkpoint: CheckpointSettings
    evaluation: EvaluationSettings
    export: ExportSettings
    seed: int = 0


def make_settings(config: Mapping[str, Any]) -> Settings:
    """The checked settings of a run's config.

    Args:
      config: A ConfigDict as `configs/base.py` makes it, or its `to_dict()`.

    Returns:
      Frozen dataclasses; the rest of the package never sees the ConfigDict.

    Raises:
      SettingsError: An unknown or missing key, a value of a wrong type or out of range.
    """
    plain = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    return build(Settings, plain, where="")


def build(kind: Any, values: Any, *, where: str) -> Any:
    """A dataclass from a mapping, section by section; `where` ends with a dot, or is empty."""
    if not isinstance(values, Mapping):
        raise SettingsError(f"{where[:-1]} = {values!r}; expected a section with keys")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for key in values:
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            hint = f"; did you mean {where}{near[0]}?" if near else ""
            raise SettingsError(f"unknown config key {where}{key}{hint}")
    missing = [name for name in fields if name not in values]
    if missing:
        raise SettingsError(f"config lacks {', '.join(where + name for name in missing)}")
    checked = {
        name: _convert(field.type, values[name], where=where + name)
        for name, field in fields.items()
    }
    try:
        return kind(**checked)
    except SettingsError as error:  # a section's rules know its keys, not its name
        raise SettingsError(f"{where}{error}") from None


def _convert(kind: Any, value: Any, *, where: str) -> Any:
    """A checked value; ints pass as floats and lists as tuples, nothing else is converted."""
    if dataclasses.is_dataclass(kind):
        return build(kind, value, where=f"{where}.")
    if get_origin(kind) is tuple:
        if not isinstance(value, list | tuple):
            raise SettingsError(f"{where} = {value!r}; expected a list")
        return tuple(_convert(get_args(kind)[0], item, where=where) for item in value)
    if get_origin(kind) is not None:
        if not isinstance(value, Mapping):
            raise SettingsError(f"{where} = {value!r}; expected a section with keys")
        return dict(value)
    if kind is float and type(value) is int:
        return float(value)
    if kind is str and value is None:  # a placeholder that nobody has set
        return ""
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise SettingsError(
            f"{where} = {value!r} is of type {type(value).__name__}; expected {kind.__name__}"
        )
    return value
