"""The look of the report page; every colour is named once, for light and for dark."""

STYLE = """
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --ink: #1b2430; --soft: #5c6878; --line: #e1e6ec;
  --edge: #8d97a5;
  --base: #8a94a3; --mka: #2f6fde; --da: #0f9d7a;
  --better: #0b7a5e; --better-wash: #e3f5ef; --worse: #b3362b; --worse-wash: #fcebe9;
  --unclear-wash: #eef1f5; --limit: #c2571a;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #11161d; --card: #19202a; --ink: #e6ebf2; --soft: #99a6b8; --line: #2b3543;
    --edge: #66748a;
    --base: #8b97a8; --mka: #74a7ff; --da: #3ecfa6;
    --better: #5bdcb6; --better-wash: #12342c; --worse: #ff9488; --worse-wash: #40201d;
    --unclear-wash: #232c38; --limit: #ffa366;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans",
    "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", sans-serif;
}
main { max-width: 1120px; margin: 0 auto; padding: 40px 24px 64px; }
header { margin-bottom: 28px; }
.kicker {
  margin: 0; color: var(--mka); font-size: 13px; font-weight: 650;
  letter-spacing: .09em; text-transform: uppercase;
}
h1 { margin: 4px 0 12px; font-size: 34px; line-height: 1.15; letter-spacing: -.015em; }
h2 { margin: 0 0 16px; font-size: 20px; letter-spacing: -.005em; }
section {
  margin: 0 0 20px; padding: 24px 26px; background: var(--card);
  border: 1px solid var(--line); border-radius: 14px;
}
small { display: block; color: var(--soft); font-size: 12.5px; font-weight: 400; }
dl { margin: 0; }
dl.inline { display: grid; grid-template-columns: max-content 1fr; gap: 2px 14px; }
dl.inline dt, dl.facts dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
dl.facts { display: grid; grid-template-columns: minmax(150px, max-content) 1fr; gap: 3px 22px; }
dl.tiles { display: flex; flex-wrap: wrap; gap: 10px; }
dl.tiles div { flex: 1 1 150px; padding: 9px 14px; background: var(--page); border-radius: 10px; }
header dl.tiles div { background: var(--card); border: 1px solid var(--line); }
dl.tiles dt { color: var(--soft); font-size: 12.5px; }
dl.tiles dd { font-size: 18px; font-weight: 650; }
.findings { list-style: none; margin: 0; padding: 0; display: grid; gap: 9px; }
.findings li { display: grid; grid-template-columns: 150px 1fr; gap: 14px; align-items: start; }
.mark {
  padding: 2px 10px; border-radius: 99px; font-size: 13px; font-weight: 600; text-align: center;
  background: var(--unclear-wash); color: var(--soft);
}
.better .mark { background: var(--better-wash); color: var(--better); }
.worse .mark { background: var(--worse-wash); color: var(--worse); }
.legend { display: flex; gap: 22px; margin: 0 0 4px; color: var(--soft); font-size: 14px; }
.key::before {
  content: ""; display: inline-block; width: 11px; height: 11px; margin-right: 7px;
  border-radius: 50%; background: var(--tone);
}
.base { --tone: var(--base); } .mka { --tone: var(--mka); } .da { --tone: var(--da); }
.generate, .model-2 { --tone: var(--mka); } .likelihood, .model-3 { --tone: var(--da); }
.model-1 { --tone: var(--base); } .model-4 { --tone: var(--limit); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 9px 10px; border-bottom: 1px solid var(--line); text-align: left; }
th { font-weight: 600; }
thead th { color: var(--soft); font-size: 13px; vertical-align: bottom; }
.number { text-align: right; white-space: nowrap; }
td.number strong { font-weight: 650; }
tr.kind th {
  padding-top: 20px; color: var(--soft); font-size: 12.5px; letter-spacing: .06em;
  text-transform: uppercase;
}
tr.minor th, tr.minor strong { font-weight: 400; }
tbody tr:last-child > * { border-bottom: 0; }
.change.better strong { color: var(--better); }
.change.worse strong { color: var(--worse); }
.change.unclear strong { color: var(--soft); }
table.plain th strong, table.plain td strong { font-weight: 400; }
table.plain tr.ours strong, table.plain tr.main strong { font-weight: 650; }
table.plain tr.ours > * { background: var(--unclear-wash); }
table.plain th[scope="row"] { min-width: 130px; }
.banner {
  padding: 10px 16px; border-radius: 10px; background: var(--worse-wash); color: var(--worse);
  font-weight: 600;
}
.controls {
  display: grid; grid-template-columns: 2fr 1.4fr 1fr 1fr; gap: 12px; align-items: end;
}
.controls label { display: grid; gap: 4px; min-width: 0; color: var(--soft); font-size: 13px; }
input, select, button {
  width: 100%; min-height: 40px; padding: 7px 12px; font: inherit; color: var(--ink);
  background: var(--page); border: 1px solid var(--edge); border-radius: 9px;
}
button { width: auto; padding: 7px 20px; cursor: pointer; font-weight: 600; }
:focus-visible { outline: 3px solid var(--mka); outline-offset: 2px; border-radius: 6px; }
.count { color: var(--soft); font-size: 14px; }
details.answer { margin: 0; padding: 0; border-top: 1px solid var(--line); }
details.answer > summary {
  display: grid; grid-template-columns: 96px minmax(140px, 1fr) 2fr; gap: 4px 14px;
  align-items: baseline; padding: 9px 4px; font-weight: 400; list-style: none;
}
details.answer > summary::-webkit-details-marker { display: none; }
details.answer > summary:hover { background: var(--page); }
details.answer[open] > summary .asked { visibility: hidden; }
.where { color: var(--soft); font-size: 13.5px; overflow-wrap: anywhere; }
.asked { overflow: hidden; white-space: nowrap; text-overflow: ellipsis; }
.right .mark { background: var(--better-wash); color: var(--better); }
.wrong .mark, .unreadable .mark { background: var(--worse-wash); color: var(--worse); }
.answer .body { margin: 0; padding: 4px 4px 18px; display: grid; gap: 12px; }
.answers { display: grid; grid-template-columns: 2fr 1fr 1fr; gap: 12px; }
.part { min-width: 0; }
.part h3 {
  margin: 0 0 4px; color: var(--soft); font-size: 12.5px; font-weight: 600; letter-spacing: .04em;
  text-transform: uppercase;
}
.quote {
  padding: 10px 14px; background: var(--page); border-radius: 10px; white-space: pre-wrap;
  overflow-wrap: anywhere; max-height: 26em; overflow-y: auto;
}
.note { margin: 14px 0 0; max-width: 82ch; color: var(--soft); font-size: 14px; }
.charts {
  display: grid; grid-template-columns: repeat(var(--columns), minmax(0, 1fr)); gap: 22px 28px;
  margin-top: 22px;
}
.by-2 { --columns: 2; } .by-3 { --columns: 3; }
figure { margin: 0; min-width: 0; }
figure.wide { margin: 4px 0 18px; }
figcaption { margin-bottom: 4px; font-size: 14px; font-weight: 600; }
svg { display: block; width: 100%; height: auto; font: 12px/1 system-ui, sans-serif; }
svg text { fill: var(--ink); }
svg .tick { fill: var(--soft); font-size: 11.5px; }
svg .name { font-size: 13.5px; font-weight: 600; }
svg .grid { stroke: var(--line); stroke-width: 1; }
svg .curve { fill: none; stroke: var(--mka); stroke-width: 1.9; stroke-linejoin: round; }
svg .curve.faint { stroke-width: 1; opacity: .35; }
svg .dot { fill: var(--mka); }
svg line.limit { stroke: var(--limit); stroke-width: 1.4; stroke-dasharray: 5 4; }
svg text.limit { fill: var(--limit); font-weight: 600; }
svg .stage line { stroke: var(--tone); stroke-width: 2.4; opacity: .55; stroke-linecap: round; }
svg .stage circle { fill: var(--tone); }
details { margin-top: 12px; border-top: 1px solid var(--line); padding-top: 12px; }
details:first-of-type { border-top: 0; padding-top: 0; }
section > details { font-size: 15px; }
summary { cursor: pointer; font-weight: 600; }
summary + * { margin-top: 12px; }
@media (max-width: 640px) {
  main { padding: 24px 12px 40px; } section { padding: 18px 16px; }
  .findings li, dl.facts, dl.inline { grid-template-columns: 1fr; gap: 2px; }
  .mark { justify-self: start; } .charts { grid-template-columns: 1fr; }
  dl.facts dd { margin-bottom: 8px; }
  .controls, .answers { grid-template-columns: 1fr; }
  details.answer > summary { grid-template-columns: 96px 1fr; }
  details.answer > summary .asked { grid-column: 1 / -1; }
  details.answer[open] > summary .asked { display: none; }
  table.plain { font-size: 14px; } table.plain th, table.plain td { padding: 7px 8px; }
  table.plain th:first-child { position: sticky; left: 0; background: var(--card); }
  table.plain tr.ours th:first-child { background: var(--unclear-wash); }
  figure.wide { overflow-x: auto; } figure.wide svg { min-width: 560px; }
}
@media print {
  body { background: #fff; font-size: 11pt; } main { max-width: none; padding: 0; }
  section { border: 0; padding: 8px 0; } h2 { break-after: avoid; }
  tr, figure, details.answer { break-inside: avoid; }
  .scroll { overflow: visible; } .controls, #more { display: none; }
  .quote { max-height: none; overflow: visible; }
}
"""
