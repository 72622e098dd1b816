"""A page read back: nesting, tables, facts, and what it would load."""

import html.parser

VOID = {"meta", "line", "circle", "polyline", "input"}


class Reader(html.parser.HTMLParser):
    """Checks nesting, and collects tables, definition lists and outside links."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open, self.rows, self.terms, self.links = [], [], [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        names = dict(attributes)
        self.links += [names[name] for name in ("src", "href", "srcset", "data") if name in names]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append([])
        if tag == "dt":
            self.terms.append(["", ""])
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        assert tag in VOID

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if {"td", "th"} & set(self.open) and data.strip():
            self.rows[-1][-1].append(data)
        for tag, place in (("dt", 0), ("dd", 1)):
            if tag in self.open:
                self.terms[-1][place] += data


def read_page(page: str) -> Reader:
    """A page whose every tag is closed and that loads nothing."""
    reader = Reader(page)
    assert reader.open == [], "every tag is closed"
    assert reader.links == [], "nothing is loaded"
    return reader
