"""The live page: one file that asks for nothing but ``/live.json`` of the server that it came from."""

from __future__ import annotations

import base64
import hashlib

_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1c1f23; --soft: #5b636b; --line: #d4d8dd; --bad: #b03218;
  --bar: #0072b2; --skipped: #e6e8ea; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14171a; --ink: #e6e8ea; --soft: #a3abb3; --line: #3a4046; --bad: #ff7a5c;
    --bar: #56b4e9; --skipped: #2a2f34; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 64rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.4rem; line-height: 1.2; margin: .25rem 0; }
h2 { font-size: 1rem; margin: 1.5rem 0 .25rem; }
p { margin: .25rem 0; color: var(--soft); }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(10rem, 1fr)); gap: .5rem; margin: 1rem 0; }
dl div { border: 1px solid var(--line); padding: .4rem .6rem; }
dt { color: var(--soft); font-size: .85rem; }
dd { margin: 0; font-size: 1.2rem; font-variant-numeric: tabular-nums; }
canvas { display: block; width: 100%; height: 9rem; border: 1px solid var(--line); }
#trouble { color: var(--bad); }
[hidden] { display: none; }
"""

_SCRIPT = """
"use strict";
const byId = id => document.getElementById(id);
let state = {};
let token = new URLSearchParams(location.hash.slice(1)).get("token") || "";
const get = path => path.split(".").reduce((at, name) => at === null || at === undefined ? at : at[name], state);
const colour = name => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
const count = value => value.toLocaleString("en", {maximumFractionDigits: 2});
const scaled = (value, unit) => {
  if (value === 0) return "0 " + unit;
  const steps = [[1, ""], [1e-3, "m"], [1e-6, "u"], [1e-9, "n"]];
  const [factor, letter] = steps.find(([f]) => Math.abs(value) >= f) || steps[3];
  return (value / factor).toPrecision(4) + " " + letter + unit;
};
const shown = (value, unit) => value === null || value === undefined ? "-"
  : typeof value !== "number" ? String(value) : unit ? scaled(value, unit) : count(value);

function blank(id) {
  const canvas = byId(id), ratio = window.devicePixelRatio || 1;
  canvas.width = Math.max(1, Math.round(canvas.clientWidth * ratio));
  canvas.height = Math.max(1, Math.round(canvas.clientHeight * ratio));
  const pen = canvas.getContext("2d");
  pen.clearRect(0, 0, canvas.width, canvas.height);
  return [pen, canvas.width, canvas.height];
}

function drawStrip() {
  const [pen, width, height] = blank("strip"), points = get("last.points") || [], volts = get("voltages_v") || [];
  const layers = get("layers"), low = volts[0], span = volts[volts.length - 1] - low || 1;
  points.forEach((column, at) => column.forEach((point, layer) => {
    const share = (volts[point] - low) / span;
    pen.fillStyle = point < 0 ? colour("skipped") : "hsl(" + (250 - 210 * share) + " 75% " + (38 + 18 * share) + "%)";
    const x = Math.floor(at * width / points.length), y = Math.floor((layers - 1 - layer) * height / layers);
    pen.fillRect(x, y, Math.ceil(width / points.length), Math.ceil(height / layers));
  }));
}

function drawSlack() {
  const [pen, width, height] = blank("slack"), slack = get("last.slack_s") || [];
  if (!slack.length) return;
  const top = Math.max(0, ...slack), bottom = Math.min(0, ...slack), span = top - bottom || 1;
  const y = value => 4 + (height - 8) * (top - value) / span;
  pen.fillStyle = colour("line");
  pen.fillRect(0, y(0), width, 1);
  slack.forEach((value, at) => {
    pen.fillStyle = colour(value < 0 ? "bad" : "bar");
    const one = width / slack.length;
    pen.fillRect(at * one, Math.min(y(0), y(value)), Math.max(1, one - 1), Math.max(2, Math.abs(y(value) - y(0))));
  });
}

function drawRecent() {
  const [pen, width, height] = blank("recent"), recent = get("recent_j") || [], most = Math.max(...recent, 1e-12);
  pen.fillStyle = colour("bar");
  const one = width / Math.max(20, recent.length);
  recent.forEach((value, at) => {
    const tall = (height - 8) * value / most;
    pen.fillRect(at * one, height - tall, Math.max(1, one - 1), tall);
  });
}

function draw() {
  for (const cell of document.querySelectorAll("[data-field]"))
    cell.textContent = shown(get(cell.dataset.field), cell.dataset.unit);
  const slack = get("last.slack_s") || [], recent = get("recent_j") || [], volts = get("voltages_v") || [];
  byId("least").textContent = shown(slack.length ? Math.min(...slack) : null, "s");
  byId("most").textContent = shown(slack.length ? Math.max(...slack) : null, "s");
  byId("dearest").textContent = shown(recent.length ? Math.max(...recent) : null, "J");
  byId("lowest").textContent = shown(volts[0], "V");
  byId("highest").textContent = shown(volts[volts.length - 1], "V");
  byId("nothing").hidden = Boolean(get("last"));
  drawStrip(); drawSlack(); drawRecent();
}

function trouble(text) {
  byId("trouble").textContent = text;
  byId("trouble").hidden = !text;
}

async function refresh() {
  try {
    const headers = token ? {Authorization: "Bearer " + token} : {};
    const answer = await fetch("live.json", {headers, cache: "no-store"});
    byId("door").hidden = answer.status !== 401;
    if (!answer.ok) {
      trouble(answer.status === 401 ? "This server wants a token." : "The server answers " + answer.status + ".");
      return;
    }
    state = await answer.json();
    trouble("");
    draw();
  } catch (error) {
    trouble("The server cannot be reached.");
  }
}

byId("door").addEventListener("submit", event => { event.preventDefault(); token = byId("key").value; refresh(); });
addEventListener("resize", draw);
refresh();
setInterval(refresh, 1000);
"""

_CELLS = (
    ("energy per token", "last.energy_per_token_j", "J"),
    ("energy of the response", "last.energy_j", "J"),
    ("tokens", "last.tokens", ""),
    ("mean depth, layers", "last.mean_depth", ""),
    ("tokens that left early", "last.exits", ""),
    ("late tokens", "last.deadline_misses", ""),
    ("TTFT", "last.ttft_s", "s"),
    ("TTFT target", "last.slo.ttft_s", "s"),
    ("TPOT", "last.tpot_s", "s"),
    ("TPOT target", "last.slo.tpot_s", "s"),
    ("waited", "last.waited_s", "s"),
)
_TOTALS = (
    ("responses", "totals.requests", ""),
    ("tokens", "totals.tokens", ""),
    ("late tokens", "totals.deadline_misses", ""),
    ("energy", "totals.energy_j", "J"),
    ("chip at work", "totals.busy_s", "s"),
    ("requests that wait", "waiting", ""),
)


def _cells(cells: tuple[tuple[str, str, str], ...]) -> str:
    return "".join(
        f'<div><dt>{title}</dt><dd data-field="{path}" data-unit="{unit}">-</dd></div>' for title, path, unit in cells
    )


def _field(path: str) -> str:
    return f'<b data-field="{path}" data-unit="">-</b>'


PAGE = (
    "<!doctype html>\n<html lang=en><head><meta charset=utf-8>"
    '<meta name=viewport content="width=device-width, initial-scale=1">'
    f"<title>clone-rl serve</title><style>{_STYLE}</style></head><body>"
    f"<h1>clone-rl</h1><p>Model {_field('model')} on {_field('chip')}, controller {_field('controller')}; times in "
    f"emulated seconds, waits by the {_field('clock')} clock.</p>"
    "<p id=trouble hidden role=status></p>"
    "<form id=door hidden><label>Token <input id=key type=password autocomplete=off></label> <button>Show</button></form>"
    f"<h2>Last response ({_field('last.slo.class')})</h2><p id=nothing>Nothing was asked yet.</p><dl>{_cells(_CELLS)}"
    "<div><dt>least slack</dt><dd id=least>-</dd></div></dl>"
    "<h2>Voltage by token and layer</h2><canvas id=strip role=img aria-label='Voltage of each layer of each token'></canvas>"
    "<p>A column is a token, its first layer below. Blue is the lowest voltage (<b id=lowest>-</b>), orange the highest "
    "(<b id=highest>-</b>); grey layers were left out.</p>"
    "<h2>Deadline slack by token</h2><canvas id=slack role=img aria-label='Time to the deadline of each token'></canvas>"
    "<p>How long before its deadline each token came, the highest bar <b id=most>-</b>; below the line, in red, it was "
    "late.</p>"
    "<h2>Energy per token of the latest responses</h2><canvas id=recent role=img aria-label='Energy per token'></canvas>"
    "<p>The newest on the right, the highest bar <b id=dearest>-</b>.</p>"
    f"<h2>Since the start</h2><dl>{_cells(_TOTALS)}</dl>"
    f"<script>{_SCRIPT}</script></body></html>\n"
)
"""The page."""


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


HEADERS = {
    "Content-Security-Policy": f"default-src 'none'; script-src {_hash(_SCRIPT)}; style-src {_hash(_STYLE)}; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
"""What a browser may do for it: run this script, use this style, ask this server."""
