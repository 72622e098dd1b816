"""What every report page is built from: escaped text, sections, lists of facts, the document."""

import base64
import hashlib
import html
from collections.abc import Sequence

from medcare_jax.evaluation.report.style import STYLE


def text(content: str) -> str:
    """Text that no reader takes for markup."""
    return html.escape(content)


def section(title: str, body: str) -> str:
    """A titled part of the page; nothing without a body."""
    return f"<section>\n<h2>{text(title)}</h2>\n{body}\n</section>\n" if body else ""


def folded(title: str, body: str) -> str:
    """A part that opens on demand; nothing without a body."""
    return f"<details><summary>{text(title)}</summary>{body}</details>" if body else ""


def facts(items: Sequence[tuple[str, str]]) -> str:
    """Names and values side by side; nothing without any."""
    rows = "".join(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in items)
    return f'<dl class="facts">{rows}</dl>' if rows else ""


def tiles(items: Sequence[tuple[str, str]]) -> str:
    """Names with large values."""
    body = "".join(
        f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>" for name, value in items
    )
    return f'<dl class="tiles">{body}</dl>'


def legend(keys: Sequence[tuple[str, str]]) -> str:
    """What each colour means, from CSS classes and names."""
    body = "".join(f'<span class="key {kind}">{text(name)}</span>' for kind, name in keys)
    return f'<p class="legend">{body}</p>'


def document(title: str, body: str, *, script: str = "") -> str:
    """The whole page: one file that loads nothing, and runs nothing but the script given.

    Should markup slip in with a sample's text all the same, the policy in the head keeps a browser
    from running or fetching any of it.
    """
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    runs = f"script-src 'sha256-{digest}'" if script else "script-src 'none'"
    policy = f"default-src 'none'; style-src 'unsafe-inline'; {runs}; base-uri 'none'"
    tail = f"<script>{script}</script>\n" if script else ""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"{body}</main>\n{tail}</body>\n</html>\n"
    )
