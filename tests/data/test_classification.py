"""The classification is read as it is published, and only what a short question can ask about."""

import subprocess
import sys
from collections import Counter

from medcare_jax.data.classification import read_diagnoses


def test_classification_is_read_as_published():
    by_code = {d.code: d for d in read_diagnoses()}
    asthma = by_code["J45.2"]
    assert (asthma.title, asthma.category) == ("Mild intermittent asthma", "J45")
    assert asthma.block == "Chronic lower respiratory diseases"
    assert asthma.chapter == "Diseases of the respiratory system"
    assert not asthma.is_billable
    assert by_code["A95.0"].is_billable
    assert len({d.title for d in by_code.values()}) == len(by_code) > 8000


def test_a_block_that_shares_its_name_with_a_category_keeps_its_own_title():
    blocks = {d.category: d.block for d in read_diagnoses()}
    assert blocks["C50"] == "Malignant neoplasms of breast"
    assert not any("(" in block and block.endswith(")") for block in blocks.values())


def test_only_what_a_short_question_can_ask_about():
    diagnoses = read_diagnoses()
    meanings = Counter([d.title for d in diagnoses] + [t for d in diagnoses for t in d.terms])
    assert max(meanings.values()) == 1
    assert max(len(d.title) for d in diagnoses) <= 60
    assert len({d.chapter for d in diagnoses}) == 19
    assert not any(word in f" {m} ".lower() for m in meanings for word in (" other ", " left "))
    for chapter in {d.chapter for d in diagnoses}:
        assert len({d.block for d in diagnoses if d.chapter == chapter}) >= 4


def test_nothing_is_read_on_import():
    program = (
        "import sys, medcare_jax.data.classification; print('simple_icd_10_cm' in sys.modules)"
    )
    environment = {"PYTHONPATH": ":".join(filter(None, sys.path))}
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.stdout == "False\n", done.stderr
