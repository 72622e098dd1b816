"""The model card of an export: what it is made of and how, with digests."""

from typing import Any

from medcare_jax.conversion.model_card import FOLDED, make_card
from medcare_jax.settings import Settings

_WHAT = (
    "Made by medcare_jax {version}: Miscellaneous Knowledge Aggregation (MKA), then Downstream "
    "Alignment (DA). All adapters are folded into the weights, so it loads like its base model."
)


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
    constraint, adapters = settings.constraint, settings.adapters
    frozen = "frozen" if constraint.freeze_knowledge else "learning on"
    return make_card(
        header=FOLDED,
        title=f"MedCare model on {base}",
        what=_WHAT.format(version=version),
        facts={
            "base": f"{base}, sha256 `{digest}`",
            "stages": f"MKA {data['mka']['steps']} steps, DA {data['da']['steps']} steps",
            "adapters": f"rank {adapters.rank}, alpha {adapters.alpha}",
            "noise aggregator": f"{adapters.experts} experts, {adapters.experts_per_token} per "
            "token; dropped before DA",
            "constraint of DA": f"{constraint.kind}, knowledge {frozen}",
            "weights": f"adapters folded in in float32, written in {settings.export.dtype}",
        },
        end=f"## Training data\n\n{_data_table(data)}",
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
