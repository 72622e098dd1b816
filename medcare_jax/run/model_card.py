"""The model card of an export: what it is made of and how, with digests."""

from typing import Any

from medcare_jax.settings import Settings

_CARD = """---
library_name: transformers
pipeline_tag: text-generation
tags: [medical, medcare]
---

# MedCare model on {base}

Made by medcare_jax {version}: Miscellaneous Knowledge Aggregation (MKA), then Downstream Alignment
(DA), after Liao et al., EMNLP 2024 Findings, arXiv:2406.17484. All adapters are folded into the
weights, so it loads like its base model.

For research. Not a medical device: nobody has checked its answers for clinical use. The licences
of the base model and of the training data apply to it.

| | |
|---|---|
| base | {base}, sha256 `{digest}` |
| stages | MKA {mka_steps} steps, DA {da_steps} steps |
| adapters | rank {rank}, alpha {alpha} |
| noise aggregator | {experts} experts, {chosen} per token; dropped before DA |
| constraint of DA | {constraint}, knowledge {frozen} |
| weights | adapters folded in in float32, written in {dtype} |

## Training data

{data}
"""


def model_card(
    settings: Settings, *, base: str, digest: str, data: dict[str, Any], version: str
) -> str:
    """The Markdown of the card.

    Args:
      settings: Of the run.
      base: What the base model was called.
      digest: Of the base model.
      data: The run's data report.
      version: Of this package.
    """
    constraint = settings.constraint
    return _CARD.format(
        base=base,
        digest=digest,
        version=version,
        mka_steps=data["mka"]["steps"],
        da_steps=data["da"]["steps"],
        rank=settings.adapters.rank,
        alpha=settings.adapters.alpha,
        experts=settings.adapters.experts,
        chosen=settings.adapters.experts_per_token,
        constraint=constraint.kind,
        frozen="frozen" if constraint.freeze_knowledge else "learning on",
        dtype=settings.export.dtype,
        data=_data_table(data),
    )


def _data_table(data: dict[str, Any]) -> str:
    """One row per file and stage."""
    rows = ["| stage | file | records | tokens | sha256 |", "|---|---|---|---|---|"]
    for stage in ("mka", "da"):
        for file in data[stage]["files"]:
            name = file["path"].rpartition("/")[2]
            rows.append(
                f"| {stage} | {name} | {file['kept']} | {file['tokens']} | `{file['sha256']}` |"
            )
    return "\n".join(rows)
