"""A part of the page in which answers are looked through: by task, outcome and search.

The samples stand in the page as inert JSON and become text nodes only, a screenful at a time, so
a page of ten thousand answers opens at once and no answer can become markup.
"""

import json
from collections.abc import Iterable
from typing import Any

from medcare_jax.evaluation.report.wording import MARKS, share_of_scale
from medcare_jax.evaluation.results import Results, Sample

_ROUNDING = 1e-6  # the reference's ROUGE of equal texts is below 1 by about 1e-8
_ESCAPES = str.maketrans({c: f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"})


def browser(results: Results, samples: Iterable[Sample]) -> str:
    """The section's body: controls, an empty list, and the samples; nothing without any.

    Args:
      results: Gives titles and headline metrics.
      samples: In the order in which they shall be listed.
    """
    entries = [_entry(results, sample) for sample in samples]
    if not entries:
        return ""
    titles = {name: task["title"] for name, task in results["tasks"].items()}
    data = json.dumps({"titles": titles, "samples": entries}, ensure_ascii=False)
    inert = data.translate(_ESCAPES)
    return f'{_CONTROLS}<script type="application/json" id="samples">{inert}</script>'


def _entry(results: Results, sample: Sample) -> dict[str, Any]:
    """What the page needs of a sample; short keys, since there may be many."""
    metric = _metric(results, sample)
    score = sample["scores"].get(metric)
    if sample["parsed"] is None and score == 0:
        outcome = "unreadable"
    elif score is None:
        outcome = "unscored"
    else:
        is_right = share_of_scale(metric, score) > 1 - _ROUNDING
        outcome = "right" if is_right else "wrong"
    return {
        "t": sample["task"],
        "p": sample["protocol"],
        "i": sample["id"],
        "y": sample["type"],
        "m": [[turn["role"], turn["content"]] for turn in sample["prompt"]],
        "o": sample["output"],
        "r": _plain(sample["parsed"]),
        "g": _plain(sample["gold"]),
        "s": sample["scores"],
        "k": outcome,
    }


def _metric(results: Results, sample: Sample) -> str:
    """The headline's metric; of CBLUE, which has none per item, that of the item's own task."""
    metric = results["tasks"][sample["task"]]["metric"]
    if sample["task"] != "cblue":
        return metric
    return next((name for name in sample["scores"] if name not in MARKS), metric)


def _plain(value: Any) -> str:
    """A parsed or gold answer as text."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=1)


_CONTROLS = """<form class="controls" role="search" id="controls">
<label>Search<input type="search" id="q" placeholder="in prompts, answers, gold" autocomplete="off"></label>
<label>Task<select id="task"><option value="">all tasks</option></select></label>
<label>Asked by<select id="protocol"><option value="">any protocol</option></select></label>
<label>Outcome<select id="outcome">
<option value="notright">not right</option><option value="wrong">wrong</option>
<option value="unreadable">unreadable</option><option value="right">right</option>
<option value="unscored">not scored by itself</option><option value="">all</option></select></label>
</form>
<p class="count" id="count" role="status">The answers are shown by a script; this browser runs none.</p>
<div id="answers"></div>
<p><button type="button" id="more" hidden>Show more</button></p>
"""  # noqa: E501

SCRIPT = """
"use strict";
const PAGE = 50, DELAY = 120;
const byId = (id) => document.getElementById(id);
const {titles, samples} = JSON.parse(byId("samples").textContent);
const fields = ["q", "task", "protocol", "outcome"];
const names = {wrong: "wrong", right: "right", unreadable: "unreadable", unscored: "not scored"};
let found = [], shown = 0, timer = 0;

function make(tag, kind, text) {
  const node = document.createElement(tag);
  if (kind) node.className = kind;
  if (text !== undefined) node.textContent = text;
  return node;
}
function option(select, value, text) {
  const node = make("option", "", text);
  node.value = value;
  byId(select).append(node);
}
function haystack(s) {
  if (!s.h) {
    const turns = s.m.map((turn) => turn[1]);
    s.h = [s.i, s.y, ...turns, s.o, s.r, s.g].join("\\n").toLowerCase();
  }
  return s.h;
}
function matches(s, want, words) {
  if (want.task && s.t !== want.task) return false;
  if (want.protocol && s.p !== want.protocol) return false;
  if (want.outcome === "notright" ? s.k === "right" || s.k === "unscored"
      : want.outcome && s.k !== want.outcome) return false;
  return words.every((word) => haystack(s).includes(word));
}
function block(title, text) {
  const part = make("div", "part");
  part.append(make("h3", "", title), make("div", "quote", text || "–"));
  return part;
}
function fill(row, s) {
  if (row.childElementCount > 1) return;
  const body = make("div", "body"), answers = make("div", "answers");
  for (const [role, text] of s.m) body.append(block(role, text));
  answers.append(block("answer", s.o), block("read as", s.r), block("gold", s.g));
  body.append(answers);
  const scores = Object.entries(s.s).map(([n, v]) => n.replaceAll("_", " ") + " " +
    (Math.round(v * 1e4) / 1e4));
  if (scores.length) body.append(make("p", "note", scores.join(" · ")));
  row.append(body);
}
function line(s) {
  const row = make("details", "answer " + s.k), head = make("summary");
  const asked = s.m.length ? s.m[s.m.length - 1][1] : "";
  const where = [titles[s.t], s.p, s.y, s.i].filter(Boolean).join(" · ");
  head.append(make("span", "mark", names[s.k]), make("span", "where", where),
              make("span", "asked", asked.replace(/\\s+/g, " ").slice(0, 160)));
  row.append(head);
  row.addEventListener("toggle", () => fill(row, s));
  return row;
}
function more() {
  const part = document.createDocumentFragment();
  for (const s of found.slice(shown, shown + PAGE)) part.append(line(s));
  byId("answers").append(part);
  shown = Math.min(shown + PAGE, found.length);
  byId("more").hidden = shown === found.length;
  byId("count").textContent = found.length.toLocaleString("en") + " of " +
    samples.length.toLocaleString("en") + " answers" +
    (shown < found.length ? ", " + shown.toLocaleString("en") + " shown" : "");
}
function update() {
  const want = Object.fromEntries(fields.map((id) => [id, byId(id).value]));
  const words = want.q.toLowerCase().split(/\\s+/).filter(Boolean);
  found = samples.filter((s) => matches(s, want, words));
  shown = 0;
  byId("answers").replaceChildren();
  more();
}
function remember() {
  const set = fields.filter((id) => byId(id).value !== byId(id).dataset.first);
  const hash = new URLSearchParams(set.map((id) => [id, byId(id).value])).toString();
  history.replaceState(null, "", hash ? "#" + hash : location.pathname);
}
function recall() {
  const hash = new URLSearchParams(location.hash.slice(1));
  for (const id of fields) byId(id).value = hash.get(id) ?? byId(id).dataset.first;
  update();
}
const unique = (key) => [...new Set(samples.map((s) => s[key]))];
for (const task of unique("t")) option("task", task, titles[task]);
for (const protocol of unique("p")) option("protocol", protocol, protocol);
for (const id of fields) byId(id).dataset.first = byId(id).value;
byId("controls").addEventListener("submit", (event) => event.preventDefault());
byId("controls").addEventListener("input", () => {
  clearTimeout(timer);
  timer = setTimeout(() => { update(); remember(); }, DELAY);
});
byId("more").addEventListener("click", () => {
  const first = shown;
  more();
  byId("answers").children[first]?.firstElementChild.focus();
});
addEventListener("hashchange", recall);
addEventListener("keydown", (event) => {
  if (event.key === "/" && !/INPUT|SELECT/.test(document.activeElement.tagName)) {
    event.preventDefault();
    byId("q").focus();
  }
});
recall();
"""
"""Runs where `browser` gave a body; a link may carry a search after `#`, as in `#q=fever`."""
