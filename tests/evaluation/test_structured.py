"""Structured gold: of the right items, in their order, or refused by name."""

import pytest

from medcare_jax.evaluation.items import Item
from medcare_jax.evaluation.scoring.cblue_score import PredictionError
from medcare_jax.evaluation.structured import read_structured, with_structured_gold

ITEMS = [
    Item("1", "MedDG", (), None),
    Item("7", "KUAKE-IR", (), None),
    Item("2", "MedDG", (), None),
]
GOLD = {
    "KUAKE-IR": [{"sample_id": "7", "answer": "相关"}],
    "MedDG": [{"sample_id": "1", "answer": "甲"}, {"sample_id": "2", "answer": "乙"}],
    "CMeIE": [],
}


def test_gold_goes_to_its_item(tmp_path):
    found = with_structured_gold(ITEMS, GOLD, tmp_path)
    assert [item.gold for item in found] == ["甲", "相关", "乙"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"MedDG": GOLD["MedDG"][::-1]}, "MedDG: expected prediction 1"),
        ({"KUAKE-IR": []}, "KUAKE-IR: expected 0 predictions, one per item, got 1"),
        ({"KUAKE-IR": [{"sample_id": "7", "answer": ["相关"]}]}, "KUAKE-IR: .*'7' as the task's"),
        ({"CMeIE": GOLD["MedDG"]}, "CMeIE: expected 2 predictions, one per item, got 0"),
    ],
)
def test_gold_of_other_items_is_refused(tmp_path, change, message):
    with pytest.raises(PredictionError, match=message):
        with_structured_gold(ITEMS, GOLD | change, tmp_path)


@pytest.mark.parametrize("text", ["[]", '{"MedDG": 3}', '{"MedDG": [{"sample_id": "1"}]}'])
def test_another_layout_is_refused(tmp_path, text):
    path = tmp_path / "gold.json"
    path.write_text(text)
    with pytest.raises(PredictionError, match="gold.json: expected"):
        read_structured(path)
