"""Tasks of lm-evaluation-harness on models of ours; every option is the harness's own.

    python tools/harness.py --model medcare_jax --model_args pretrained=PATH --tasks NAME,NAME
        [--include_path DIR] [--batch_size 16] [--apply_chat_template] [--output_path DIR]
    python tools/harness.py --model medcare_jax --model_args pretrained=RUN,stage=mka,step=120 ...

PATH is what tools/evaluate.py takes as --model. Needs the extra `lm-eval`. See docs/reports.md.
"""

import sys


def main() -> None:
    """Registers our model, then hands over to the harness."""
    try:
        from lm_eval.__main__ import cli_evaluate
    except ImportError:
        sys.exit("tools/harness.py needs lm-evaluation-harness: pip install -e '.[lm-eval]'")
    import medcare_jax.run.harness  # noqa: F401  registers `medcare_jax`

    cli_evaluate()


if __name__ == "__main__":
    main()
