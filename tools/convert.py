"""Carries weights from any format to any other that makes sense.

    python tools/convert.py --source=PATH --target=DIR --to=huggingface [--base=PATH]
        [--keep=attention,knowledge,alignment] [--dtype=bfloat16] [--shard_gib=5]
    python tools/convert.py --source=RUN --target=DIR --to=peft [--stage=mka] [--step=120]
    python tools/convert.py --source=RUN --target=DIR --to=reference [--layout=mid-run]
    python tools/convert.py --source=PATH --target=WORKDIR --to=checkpoint --base=PATH
        --config=configs/x.py [--as=alignment] [--resume_at=mka]
    python tools/convert.py --verify=DIR

A source is a Hugging Face folder, a .gguf file, `embedded` (the demo's), the workdir of a run,
a checkpoint of the authors' code or a PEFT folder. Where a model is named, `ORG/NAME@REVISION` of
the hub works too. See docs/formats.md.
"""

import pathlib

from absl import app, flags
from ml_collections import config_flags

from medcare_jax.run.command import run
from medcare_jax.settings import make_settings

_SOURCE = flags.DEFINE_string("source", None, "What to convert: a path, `embedded` or ORG/NAME.")
_TARGET = flags.DEFINE_string("target", None, "Folder to make; must not exist.")
_TO = flags.DEFINE_enum(
    "to", None, ["huggingface", "peft", "reference", "checkpoint"], "What to make."
)
_FROM = flags.DEFINE_enum(
    "from",
    None,
    ["huggingface", "gguf", "run", "reference", "peft"],
    "Kind of the source; unset: recognised.",
)
_BASE = flags.DEFINE_string("base", "", "Base model of an adapter, as --source.")
_KEEP = flags.DEFINE_list(
    "keep", [], "Among attention, knowledge, noise, alignment; unset: all that can be kept."
)
_DTYPE = flags.DEFINE_enum(
    "dtype",
    None,
    ["float32", "bfloat16", "float16"],
    "Of a folded model; unset: the base's own.",
)
_LAYOUT = flags.DEFINE_enum(
    "layout", None, ["final", "mid-run"], "Of a stage-2 folder of the authors' code; unset: final."
)
_SHARD_GIB = flags.DEFINE_float(
    "shard_gib", None, "Most GiB of weights in one file; unset: 5.", 1e-9
)
_STAGE = flags.DEFINE_enum("stage", None, ["mka", "da"], "Of a run; unset: the latest it has.")
_STEP = flags.DEFINE_integer("step", None, "Of that stage; unset: its newest good checkpoint.")
_ROLE = flags.DEFINE_enum(
    "as", None, ["knowledge", "alignment"], "What an adapter becomes in a checkpoint."
)
_RESUME_AT = flags.DEFINE_enum(
    "resume_at", None, ["mka", "da"], "The stage that goes on from a checkpoint; unset: da."
)
_CONFIG = config_flags.DEFINE_config_file("config", None, "The run that goes on from a checkpoint.")
_PUSH = flags.DEFINE_string("push", None, "Upload the export as ORG/NAME@BRANCH of the hub.")
_VERIFY = flags.DEFINE_string("verify", None, "Folder to check against its report.")
_OF_CONVERSIONS = (
    "from", "base", "keep", "dtype", "layout", "shard_gib", "stage", "step", "as", "resume_at",
    "config", "push",
)  # fmt: skip
"""Flags that mean nothing beside `--verify`."""


def main() -> None:
    """Converts, or verifies."""
    from medcare_jax.conversion import hub
    from medcare_jax.run.convert import Conversion, convert

    given = (_SOURCE.value, _TARGET.value, _TO.value)
    if bool(_VERIFY.value) == any(given) or (any(given) and not all(given)):
        raise app.UsageError("Give --source, --target and --to, or --verify=DIR.")
    if _VERIFY.value:
        _verify()
        return
    if _PUSH.value:  # before a conversion that could then not be uploaded
        if _TO.value == "checkpoint":
            raise app.UsageError("--push uploads an export; --to=checkpoint makes a workdir.")
        hub.parse_push(_PUSH.value)
    target = pathlib.Path(_TARGET.value)
    asked = Conversion(
        source=_SOURCE.value,
        target=target,
        to=_TO.value,
        kind=_FROM.value or "",
        base=_BASE.value,
        keep=tuple(_KEEP.value),
        dtype=_DTYPE.value or "",
        layout=_LAYOUT.value or "",
        shard_gib=_SHARD_GIB.value,
        stage=_STAGE.value or "",
        step=_STEP.value,
        role=_ROLE.value or "",
        resume_at=_RESUME_AT.value or "",
        settings=make_settings(_CONFIG.value) if _CONFIG.value else None,
    )
    convert(asked, print)
    if _PUSH.value:
        print(f"pushed to {hub.push(target, _PUSH.value)}")


def _verify() -> None:
    """Checks a folder; nothing is converted, so no flag of a conversion is taken in silence."""
    from medcare_jax.conversion import report

    if idle := [f"--{name}" for name in _OF_CONVERSIONS if flags.FLAGS[name].present]:
        raise app.UsageError(f"{', '.join(idle)}: without meaning beside --verify; leave it out.")
    found = report.verify(pathlib.Path(_VERIFY.value))
    print(f"{_VERIFY.value}: {len(found['files'])} files are as {report.REPORT_NAME} says")


if __name__ == "__main__":
    run(main)
