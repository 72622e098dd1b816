"""The card says what the model is made of."""

from configs import tiny
from medcare_jax.run.model_card import model_card
from medcare_jax.settings import make_settings


def test_base_stages_constraint_and_data_are_named():
    file = {"path": "folder/a.json", "kept": 12, "tokens": 345, "sha256": "beef"}
    data = {name: {"steps": steps, "files": [file]} for name, steps in (("mka", 7), ("da", 3))}
    settings = make_settings(tiny.get_config())
    card = model_card(settings, base="Some-Base", digest="c0ffee", data=data, version="9.9")
    for expected in (
        "Some-Base, sha256 `c0ffee`",
        "MKA 7 steps, DA 3 steps",
        "projection, knowledge frozen",
        "rank 4, alpha 8.0",
        "| da | a.json | 12 | 345 | `beef` |",
        "medcare_jax 9.9",
    ):
        assert expected in card
    assert "folder/" not in card  # a path of this machine is nobody's business
