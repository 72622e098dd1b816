"""The card that travels with an export: what was converted, from what, and with which digests."""

from medcare_jax.conversion.sources import Source
from medcare_jax.version import __version__

_CARD = """---
{header}
tags: [medical, medcare]
---

# {title}

Converted by medcare_jax {version}. {what} Method: Liao et al., EMNLP 2024 Findings,
arXiv:2406.17484.

For research. Not a medical device: nobody has checked its answers for clinical use. The licences
of the base model and of the training data apply to it.

| | |
|---|---|
| base | {base}, sha256 `{digest}` |
| source | {kind}: {source} |
| kept | {kept} |
| adapters | {adapters} |

How close it is to the model that it was made from, and a sha256 of each file, stand in
`conversion_report.json`.
"""


def conversion_card(source: Source) -> str:
    """The card of a folded model."""
    what = "All adapters are folded into the weights." if source.parts else "No weight was changed."
    header = "library_name: transformers\npipeline_tag: text-generation"
    return _card(source, header, f"{source.name}, folded" if source.parts else source.name, what)


def adapter_card(source: Source) -> str:
    """The card of a PEFT adapter."""
    header = f"library_name: peft\nbase_model: {source.base.name}"
    return _card(source, header, f"{source.name}, adapter", "A LoRA adapter for PEFT.")


def _card(source: Source, header: str, title: str, what: str) -> str:
    """The card, filled in."""
    adapters = source.adapters
    return _CARD.format(
        header=header,
        title=title,
        version=__version__,
        what=what,
        base=source.base.name,
        digest=source.base.digest,
        kind=source.kind,
        source=source.name,
        kept=", ".join(source.parts) or "the base alone",
        adapters=f"rank {adapters.rank}, alpha {adapters.alpha}" if source.parts else "none",
    )
