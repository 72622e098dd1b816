"""Cards of conversions name the base, its digest, what was kept and how it loads."""

from medcare_jax.conversion.model_card import adapter_card, conversion_card
from medcare_jax.conversion.sources import Source, StreamedBase, in_background
from medcare_jax.params import KNOWLEDGE
from tests.helpers import TINY, TINY_ADAPTERS


def make_source(**parts: dict[str, object]) -> Source:
    base = StreamedBase("some-base", TINY["qwen2"], {}, None, {}, in_background(lambda: "c0ffee"))
    return Source("reference", "stage-1", base, parts, TINY_ADAPTERS)


def test_what_was_folded() -> None:
    card = conversion_card(make_source(**{KNOWLEDGE: {}}))
    for expected in (
        "library_name: transformers",
        "# stage-1, folded",
        "All adapters are folded into the weights.",
        "| base | some-base, sha256 `c0ffee` |",
        "| source | reference: stage-1 |",
        "| kept | knowledge |",
        "| adapters | rank 5, alpha 8.0 |",
        "`conversion_report.json`",
    ):
        assert expected in card


def test_a_base_alone() -> None:
    card = conversion_card(make_source())
    assert "# stage-1\n" in card
    assert "No weight was changed." in card
    assert "| adapters | none |" in card


def test_an_adapter_names_its_base_for_the_hub() -> None:
    card = adapter_card(make_source(**{KNOWLEDGE: {}}))
    assert card.startswith("---\nlibrary_name: peft\nbase_model: some-base\n")
