"""Talks with a model in the terminal.

    python tools/chat.py --model=PATH [--system=TEXT] [--temperature=0.7] [--top_p=0.9]
    python tools/chat.py --model=runs/demo [--stage=mka] [--step=120]

PATH is a Hugging Face folder, a .gguf file, ORG/NAME@REVISION of the hub, `embedded` (the demo's
base), or the workdir of a run. When a conversation no longer fits the model's context, its oldest
messages are left out of the prompt, and a line says so.
"""

import sys

from absl import flags

from medcare_jax.run.command import run

_MODEL = flags.DEFINE_string("model", None, "What to talk with.")
_STAGE = flags.DEFINE_enum("stage", None, ["mka", "da"], "Of a run; unset: the latest it has.")
_STEP = flags.DEFINE_integer("step", None, "Of that stage; unset: its newest good checkpoint.")
_DTYPE = flags.DEFINE_enum(
    "dtype", "float32", ["float32", "bfloat16", "float16"], "Of weights and arithmetic."
)
_SYSTEM = flags.DEFINE_string("system", "", "System prompt; unset: what the template has.")
_MAX_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", 512, "Longest answer.", 1)
_TEMPERATURE = flags.DEFINE_float("temperature", 0.7, "0 is greedy.", 0.0)
_TOP_P = flags.DEFINE_float("top_p", 0.9, "Size of the nucleus.", 1e-6, 1.0)
_SEED = flags.DEFINE_integer("seed", 0, "Of the draws.", 0)
flags.mark_flag_as_required("model")


def main() -> None:
    """Opens the model and talks."""
    import readline  # noqa: F401  (arrow keys and history in `input`)

    from medcare_jax.run.chat import ChatSettings, chat
    from medcare_jax.run.opening import open_folded

    opened = open_folded(_MODEL.value, stage=_STAGE.value, step=_STEP.value, dtype=_DTYPE.value)
    settings = ChatSettings(
        system=_SYSTEM.value,
        max_new_tokens=_MAX_NEW_TOKENS.value,
        temperature=_TEMPERATURE.value,
        top_p=_TOP_P.value,
        seed=_SEED.value,
    )
    chat(opened, settings, read=lambda: input("> "), write=_write)


def _write(text: str) -> None:
    """Shows a piece of text at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


if __name__ == "__main__":
    run(main)
