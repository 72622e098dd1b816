"""The card that travels with an export: what was made, of what, and with which digests."""

from collections.abc import Mapping

from medcare_jax.conversion.sources import Source
from medcare_jax.version import __version__

FOLDED = "library_name: transformers\npipeline_tag: text-generation"

_CARD = """---
{header}
tags: [medical, medcare]
---

# {title}

{what} Method: Liao et al., EMNLP 2024 Findings, arXiv:2406.17484.

For research. Not a medical device: nobody has checked its answers for clinical use. The licences
of the base model and of the training data apply to it.

| | |
|---|---|
{rows}

{end}
"""
_REPORT = """How close it is to the model that it was made from, and a sha256 of each file, stand in
`conversion_report.json`."""


def make_card(
    *, header: str, title: str, what: str, facts: Mapping[str, object], end: str = _REPORT
) -> str:
    """The Markdown of any card.

    Args:
      header: The lines of YAML that differ from card to card.
      title: Of the page.
      what: Whole sentences on what was done.
      facts: The rows of the table.
      end: What follows the table; by default where the report is.

    >>> print(make_card(header="a: b", title="T", what="Made.", facts={"x": 1}).splitlines()[-4])
    | x | 1 |
    """
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    return _CARD.format(header=header, title=title, what=what, rows=rows, end=end)


def conversion_card(source: Source) -> str:
    """The card of a folded model."""
    title = f"{source.name}, folded" if source.parts else source.name
    what = "All adapters are folded into the weights." if source.parts else "No weight was changed."
    return _card(source, FOLDED, title, what)


def adapter_card(source: Source) -> str:
    """The card of a PEFT adapter."""
    header = f"library_name: peft\nbase_model: {source.base.name}"
    return _card(source, header, f"{source.name}, adapter", "A LoRA adapter for PEFT.")


def _card(source: Source, header: str, title: str, what: str) -> str:
    """The card of a conversion."""
    adapters = source.adapters
    return make_card(
        header=header,
        title=title,
        what=f"Converted by medcare_jax {__version__}. {what}",
        facts={
            "base": f"{source.base.name}, sha256 `{source.base.digest}`",
            "source": f"{source.kind}: {source.name}",
            "kept": ", ".join(source.parts) or "the base alone",
            "adapters": f"rank {adapters.rank}, alpha {adapters.alpha}" if source.parts else "none",
        },
    )
