"""Text stays text; a page may run its own script and nothing else."""

import base64
import hashlib
import re

from medcare_jax.evaluation.report import elements
from tests.evaluation.report.reading import read_page

EVIL = '"><script>alert(1)</script>'


def test_text_cannot_become_markup():
    body = (
        elements.section(EVIL, elements.folded(EVIL, elements.facts([(EVIL, EVIL)])))
        + elements.tiles([(EVIL, EVIL)])
        + elements.legend([("base", EVIL)])
    )
    page = elements.document(EVIL, body)
    assert "<script" not in page
    assert read_page(page).terms == [[EVIL, EVIL]] * 2


def test_what_has_no_body_is_not_there():
    assert elements.section("title", "") == elements.folded("title", "") == elements.facts([]) == ""


def test_the_policy_allows_the_pages_own_script_alone():
    script = "let a = 1;"
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = elements.document("t", "", script=script)
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "script-src 'none'" in elements.document("t", "")
