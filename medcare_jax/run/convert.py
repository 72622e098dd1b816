"""From any source to any target that makes sense: what `tools/convert.py` does."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax

from medcare_jax.conversion import bases
from medcare_jax.conversion.exports import (
    check_room,
    export_bytes,
    export_huggingface,
    export_peft,
    export_reference,
)
from medcare_jax.conversion.huggingface import checked_dtype
from medcare_jax.conversion.metadata import read_object
from medcare_jax.conversion.reference import Layout
from medcare_jax.conversion.report import REPORT_NAME
from medcare_jax.conversion.sources import (
    KINDS,
    Source,
    StreamedBase,
    halves,
    in_background,
    open_source,
    recognise,
    stream_base,
)
from medcare_jax.conversion.tensors import DTYPES, ConversionError, cast, from_array
from medcare_jax.params import ALIGNMENT, KNOWLEDGE, NOISE, flatten
from medcare_jax.run.restore import RunAdapters, base_of, check_base, read_adapters
from medcare_jax.settings import BaseSettings, MeshSettings, Settings
from medcare_jax.sharding import make_mesh

TARGETS = ("huggingface", "peft", "reference", "checkpoint")
_SHARD_GIB = 5.0
# Flags that one target alone understands, and the fields that hold them.
_OF_TARGETS = {
    "huggingface": {"--shard_gib": "shard_gib"},
    "reference": {"--layout": "layout"},
    "checkpoint": {"--as": "role", "--resume_at": "resume_at", "--config": "settings"},
}


@dataclasses.dataclass(frozen=True)
class Conversion:
    """What is asked for; fields as the flags of `tools/convert.py`.

    Attributes:
      source: A path, `embedded`, or a name of the hub.
      target: The folder to make.
      to: One of `TARGETS`.
      kind: A key of `KINDS`; empty: recognised.
      base: Of an adapter; a path, `embedded`, or a name of the hub.
      keep: Parts; empty: all that the target can hold.
      dtype: Of a folded export; empty: the base's.
      layout: Of a stage-2 reference folder; empty: `final`.
      shard_gib: Most GiB of weights in one file; None: 5.
      stage: Of a run that is the source; empty: its latest.
      step: Of that stage; None: the newest good checkpoint.
      role: `knowledge` or `alignment`; what an adapter becomes in a checkpoint.
      resume_at: The stage that goes on from a checkpoint, `mka` or `da`; empty: `da`.
      settings: Of the run that goes on from a checkpoint.
    """

    source: str
    target: pathlib.Path
    to: str
    kind: str = ""
    base: str = ""
    keep: tuple[str, ...] = ()
    dtype: str = ""
    layout: Layout | Literal[""] = ""
    shard_gib: float | None = None
    stage: str = ""
    step: int | None = None
    role: str = ""
    resume_at: str = ""
    settings: Settings | None = None


def convert(asked: Conversion, say: Callable[[str], None]) -> None:
    """Makes the target, whole or not at all.

    Args:
      asked: What to do.
      say: Told what will be written before it is, and what came of it.

    Raises:
      ConversionError: The source cannot become that target; what is wrong with it.
      FileNotFoundError: Something named is not there.
      ValueError, OSError: Of the readers and writers of the formats.
    """
    path = bases.locate(BaseSettings(asked.source))
    kind = asked.kind or recognise(path)
    if asked.to not in KINDS[kind]:
        raise ConversionError(
            f"{path} is of kind {kind}, which becomes {' or '.join(KINDS[kind])}, not {asked.to}"
        )
    _check_flags(asked, kind)
    check_room(asked.target, 0)
    source = _open(asked, path, kind)
    if asked.to == "checkpoint":
        _adopt(asked, source, say)
        return
    parts = asked.keep or _usual(source, asked)
    source = source.keep(parts, is_mixture_possible=asked.to == "reference")
    _export(asked, source, say)
    _tell(asked.target, say)


def _check_flags(asked: Conversion, kind: str) -> None:
    """Raises if something was asked for that means nothing for this source or target."""
    if asked.to != "huggingface" and asked.dtype:
        raise ConversionError("adapters keep float32, bit for bit; --dtype is for --to=huggingface")
    for target, flags in _OF_TARGETS.items():
        for flag, field in flags.items():
            if asked.to != target and getattr(asked, field) not in ("", None):
                raise ConversionError(f"{flag} means nothing without --to={target}")
    if kind != "run" and (asked.stage or asked.step is not None):
        raise ConversionError(f"{asked.source} is of kind {kind}; --stage and --step are of runs")
    if asked.base and kind not in ("reference", "peft"):
        raise ConversionError(
            f"{asked.source} is of kind {kind} and brings its own base; --base is of adapters"
        )


def _open(asked: Conversion, path: pathlib.Path, kind: str) -> Source:
    """The source, of whichever kind."""
    if kind == "run":
        return open_run_source(path, asked.stage or None, asked.step)
    base = bases.locate(BaseSettings(asked.base)) if asked.base else None
    is_left_out = asked.keep and NOISE not in asked.keep
    drops_noise = is_left_out or (asked.to in ("huggingface", "peft") and NOISE not in asked.keep)
    source = open_source(path, kind, base, drop_noise=bool(drops_noise))
    named = dataclasses.replace(source.base, name=_name(asked.base or asked.source))
    return dataclasses.replace(source, name=_name(asked.source), base=named)


def _name(path: str) -> str:
    """What reports and cards call what a path stands for."""
    return bases.name_of(BaseSettings(path))


def _adopt(asked: Conversion, source: Source, say: Callable[[str], None]) -> None:
    """A workdir to go on from."""
    from medcare_jax.run import adoption

    if asked.settings is None:
        raise ConversionError(
            "--to=checkpoint makes the workdir of a run; name that run with --config=FILE (and "
            "its base with --config.base.path, its data with --config.mka.files ...)"
        )
    source = source.keep(asked.keep, is_mixture_possible=True)
    has_alignment = ALIGNMENT in source.parts
    role = asked.role or (ALIGNMENT if has_alignment else KNOWLEDGE)
    adoption.adopt(
        source,
        asked.target,
        asked.settings,
        role=role,
        resume_at=asked.resume_at or "da",
        say=say,
    )


def _usual(source: Source, asked: Conversion) -> tuple[str, ...]:
    """What is kept by default: in a stage-2 reference folder the attention stays in its base."""
    if asked.to == "reference" and source.is_merged:
        return tuple(part for part in source.parts if part != "attention")
    return ()


def _export(asked: Conversion, source: Source, say: Callable[[str], None]) -> None:
    """Writes the folder of an export."""
    if asked.to == "huggingface":
        dtype = checked_dtype(asked.dtype or None)
        nbytes = export_bytes(source, dtype)
        free = check_room(asked.target, nbytes)
        say(
            f"writes {nbytes / 2**30:.3f} GiB of weights to {asked.target}; the disk has "
            f"{free / 2**30:.1f} GiB free"
        )
        shard_bytes = int((asked.shard_gib or _SHARD_GIB) * 2**30)
        export_huggingface(source, asked.target, dtype=dtype, shard_bytes=shard_bytes)
    elif asked.to == "peft":
        export_peft(source, asked.target)
    else:
        export_reference(source, asked.target, layout=asked.layout or "final")


def _tell(target: pathlib.Path, say: Callable[[str], None]) -> None:
    """The report in two lines."""
    report = read_object(target / REPORT_NAME)
    agreement: Mapping[str, Any] = report["agreement"]
    say(f"{target}: kept {', '.join(report['kept']) or 'the base alone'}, {report['dtype']}")
    say(
        f"against the live model: largest logit difference {agreement['max_logit_difference']:.2e},"
        f" KL {agreement['kl']:.2e}, argmax agrees in {100 * agreement['argmax_agreement']:.1f} % "
        f"({agreement['how']})"
    )


def open_run_source(workdir: pathlib.Path, stage: str | None, step: int | None) -> Source:
    """A run of ours at any stage and step, in parts that stream.

    Raises:
      WorkdirError, CheckpointError: As `restore.read_adapters`.
    """
    found = read_adapters(workdir, stage=stage, step=step)
    base = _run_base(found)
    trees = dict(found.trees)
    is_merged = "attention" in trees
    parts = {name: tree for name, tree in trees.items() if name == "attention"}
    parts |= halves(trees.pop(KNOWLEDGE))
    parts |= {name: tree for name, tree in trees.items() if name != "attention"}
    return Source(
        "run",
        workdir.name,
        base,
        parts,
        found.settings.adapters,
        is_merged=is_merged,
        facts={"stage": found.stage, "step": found.step},
    )


def _run_base(found: RunAdapters) -> StreamedBase:
    """The base of a run, in the dtype that the run held it in, checked by its digest."""
    named = base_of(found)
    if named.path == bases.RANDOM:
        mesh = make_mesh(MeshSettings(fsdp=1), jax.devices()[:1])
        base = bases.load(named, mesh, seed=found.settings.seed)
        check_base(found, base.digest)
        leaves = {path: from_array(leaf) for path, leaf in flatten(base.params).items()}
        return StreamedBase(
            base.name,
            base.settings,
            leaves,
            base.tokenizer,
            base.generation_config,
            in_background(lambda: base.digest),
        )
    streamed = stream_base(bases.locate(named))
    check_base(found, streamed.digest)
    leaves = {
        leaf: cast(tensor, DTYPES[named.dtype], name=leaf)
        for leaf, tensor in streamed.leaves.items()
    }
    return dataclasses.replace(streamed, name=bases.name_of(named), leaves=leaves)
