"""The report as one self-contained HTML page: no scripts, no network, light and dark, readable on a phone."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from clone_rl.evaluation.learning_curves import Curves
from clone_rl.evaluation.regret_figure import measured
from clone_rl.evaluation.results import Results
from clone_rl.version import __version__

_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1c1f23; --soft: #5b636b; --line: #d4d8dd;
  --good: #00704f; --bad: #b03218; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14171a; --ink: #e6e8ea; --soft: #a3abb3; --line: #3a4046; --good: #2bc79a; --bad: #ff7a5c; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 76rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.5rem; line-height: 1.2; margin: .5rem 0; }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; border-bottom: 1px solid var(--line); }
p, li { max-width: 48rem; }
.verdict { font-size: 1.1rem; border-left: 4px solid var(--good); padding-left: .75rem; }
.verdict.none { border-color: var(--bad); }
.soft, caption, figcaption { color: var(--soft); font-size: .9rem; }
.wide { overflow-x: auto; margin-bottom: 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
caption { text-align: left; padding-bottom: .25rem; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--paper); }
tr.broken td { color: var(--soft); }
.yes { color: var(--good); } .no { color: var(--bad); }
figure { margin: 0; }
figure img { display: block; width: 100%; min-width: 44rem; height: auto; }
pre, code { font-size: .85rem; }
pre { overflow-x: auto; padding: .5rem; border: 1px solid var(--line); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem .8rem; font-size: .9rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
"""

MARK = "<meta name=generator content='clone-rl report'>"
"""What tells a page that was made here from others."""

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""What a browser may load for the page: pictures that are in it, and nothing else."""


@dataclass(frozen=True)
class Picture:
    """A picture of the page.

    Attributes:
        name: Of its file, without the ending.
        title, caption: For people; the caption says what is seen.
        png: By theme.
    """

    name: str
    title: str
    caption: str
    png: Mapping[str, bytes]


def _table(caption: str, head: Sequence[str], rows: Sequence[tuple[Sequence[str], bool]]) -> str:
    """A table that scrolls by itself; cells are HTML, and rows that break a constraint are pale."""
    lines = "".join(
        f"<tr{'' if held else ' class=broken'}>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>" for cells, held in rows
    )
    titles = "".join(f"<th scope=col>{escape(title)}</th>" for title in head)
    return (
        f"<div class=wide tabindex=0><table><caption>{escape(caption)}</caption><thead><tr>{titles}</tr></thead>"
        f"<tbody>{lines}</tbody></table></div>"
    )


def _interval(row: Mapping[str, Any], key: str, factor: float, digits: int) -> str:
    low, high = row[f"{key}_ci"]
    return f"{row[key] * factor:.{digits}f} <span class=soft>[{low * factor:.{digits}f}, {high * factor:.{digits}f}]</span>"


def _share(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{100 * value:.{digits}f}"


def _verdict(held: bool) -> str:
    return "<span class=yes>yes</span>" if held else "<span class=no>no</span>"


def _summary(rows: Sequence[Mapping[str, Any]], best: str) -> str:
    head = (
        "controller", "energy per token (uJ)", "within constraints", "over the winner (%)", "average power (mW)",
        "late (%)", "differs (%)",
        "dNLL (nats)", "depth (layers)", "TTFT p50 / p99 (ms)", "TPOT p50 / p99 (ms)", "switches per token", "overhead (%)",
    )  # fmt: skip
    lines = []
    for row in rows:
        over = row.get("over_best")
        low, high = row.get("over_best_ci") or (None, None)
        name = escape(row["name"]) + (" <span class=yes>&#9733;</span>" if row["name"] == best else "")
        cells = (
            name,
            _interval(row, "energy_per_token_j", 1e6, 3),
            _verdict(row["within_constraints"]),
            "-" if over is None else f"{100 * over:+.1f} <span class=soft>[{_share(low)}, {_share(high)}]</span>",
            f"{row['avg_power_w'] * 1e3:.2f}",
            _interval(row, "miss_rate", 100, 2),
            _interval(row, "disagreement", 100, 2),
            _interval(row, "dnll", 1, 4),
            f"{row['mean_depth']:.2f}",
            f"{row['ttft_p50_s'] * 1e3:.1f} / {row['ttft_p99_s'] * 1e3:.1f}",
            "-" if row["tpot_p50_s"] is None else f"{row['tpot_p50_s'] * 1e3:.3f} / {row['tpot_p99_s'] * 1e3:.3f}",
            f"{row['switches_per_token']:.2f}",
            _share(row["overhead"], 2),
        )
        lines.append((cells, row["within_constraints"]))
    return _table("Means over all tokens; 95 % intervals in brackets. The star is the winner.", head, lines)


def _kinds(kinds: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    head = ("controller", "requests", "energy per token (uJ)", "late (%)", "differs (%)", "dNLL (nats)", "depth (layers)")
    blocks = []
    for kind, rows in kinds.items():
        lines = [
            (
                (
                    escape(row["name"]),
                    str(row["requests"]),
                    _interval(row, "energy_per_token_j", 1e6, 3),
                    _interval(row, "miss_rate", 100, 2),
                    _interval(row, "disagreement", 100, 2),
                    _interval(row, "dnll", 1, 4),
                    f"{row['mean_depth']:.2f}",
                ),
                True,
            )
            for row in rows
        ]
        blocks.append(_table(f"{kind} requests", head, lines))
    return "<p class=soft>Limits are on the mean over all types together; none is judged by itself.</p>" + "".join(blocks)


def _regret(rows: Sequence[Mapping[str, Any]]) -> str:
    head = (
        "controller", "regret (%)", "V/f regret (%)", "exit regret (%)", "of which no causal policy can remove (%)",
        "requests", "within constraints",
    )  # fmt: skip
    lines = [
        (
            (
                escape(row["name"]),
                _interval(row, "regret", 100, 1),
                _share(row["vf_regret"]),
                _share(row["exit_regret"]),
                _share(row.get("causal_regret")),
                str(row["regret_requests"]),
                _verdict(row["within_constraints"]),
            ),
            row["within_constraints"],
        )
        for row in measured(rows)
    ]
    return (
        "<p>Energy beyond a clairvoyant that holds the same limits on the same requests, as a share of its energy. V/f regret "
        "is what clairvoyant operating points would save under the controller's own exits; exit regret is the rest. The part "
        "of it that no causal policy can remove is that of the best stopping rule, which sees what controllers see and was "
        "fitted to the requests of this very split. A controller that breaks a constraint may be below the oracle.</p>"
        + _table("Regret to the feasible oracle", head, lines)
    )


def _live(rows: Sequence[Mapping[str, Any]]) -> str:
    head = (
        "controller",
        "replay (uJ)",
        "live (uJ)",
        "ratio",
        "differs: replay (%)",
        "live (%)",
        "points",
        "late: replay (%)",
        "live (%)",
    )
    lines = []
    for row in rows:
        before = row["replay"]
        energies = [f"{one['energy_per_token_j'] * 1e6:.3f}" for one in (before, row)]
        differs, late = ([_share(one[key], 2) for one in (before, row)] for key in ("disagreement", "miss_rate"))
        cells = (
            escape(row["name"]), *energies, f"{row['energy_ratio']:.4f}", *differs, f"{row['disagreement_points']:+.2f}",
            *late,
        )  # fmt: skip
        lines.append((cells, row["within_constraints"]))
    return _table("The model in the loop, and what a replay of the same requests predicted", head, lines)


def _picture(picture: Picture) -> str:
    light, dark = (base64.b64encode(picture.png[name]).decode() for name in ("light", "dark"))
    return (
        f'<figure><div class=wide tabindex=0><picture><source media="(prefers-color-scheme: dark)" '
        f'srcset="data:image/png;base64,{dark}"><img alt="{escape(picture.title)}" '
        f'src="data:image/png;base64,{light}"></picture></div>'
        f"<figcaption>{escape(picture.caption)}</figcaption></figure>"
    )


def _facts(facts: Mapping[str, str]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items()) + "</dl>"


def _origin(results: Results) -> str:
    setting, limits = results.setting, results.limits
    facts = {
        "scenario": f"{setting['scenario']} (sha256 {setting['scenario_sha256'][:16]})",
        "chip": f"{setting['chip']} (sha256 {setting['chip_sha256'][:16]})",
        "traces": f"{setting['traces']} (sha256 {setting['traces_sha256'][:16]})",
        "split": f"{setting['split']}, {results.requests} requests per controller, {results.mode}",
        "evaluation seeds": ", ".join(map(str, results.seeds)),
        "limits": f"late <= {limits.miss:.2%}, differs <= {limits.disagree:.2%}, dNLL <= {limits.dnll:g} nats per token, "
        f"average power <= {setting['limit_w']:g} W",
        "clone-rl": f"{', '.join(results.versions)} wrote the rows, {__version__} this page",
    }
    for name, own in results.origins.items():
        what = f"{own['policy']}, sha256 {own['policy_sha256'][:16]}" if own["policy_sha256"] else json.dumps(own["settings"])
        facts[name] = what if len(what) <= 300 else f"{what[:297]}..."
    return _facts(facts)


def sentence(results: Results) -> str:
    """Who wins, and by how much over the next one within the constraints."""
    if not results.best:
        return "No controller holds the constraints; there is no winner."
    held = sorted((r for r in results.summary if r["within_constraints"]), key=lambda r: r["energy_per_token_j"])
    first = (
        f"{results.best} uses the least energy within the constraints: {held[0]['energy_per_token_j'] * 1e6:.3f} uJ per token"
    )
    if len(held) < 2:
        return f"{first}. Nobody else holds them."
    low, high = held[1]["over_best_ci"]
    tie = " The interval includes 0: it is a tie." if low <= 0 else ""
    return (
        f"{first}. {held[1]['name']}, the next, uses {100 * held[1]['over_best']:.1f} % more "
        f"(95 % interval {100 * low:.1f} to {100 * high:.1f} %).{tie}"
    )


def page(
    title: str,
    results: Results | None,
    pictures: Mapping[str, Picture],
    curves: Curves | None,
    commands: Sequence[str],
    notes: Sequence[str] = (),
) -> str:
    """The whole page.

    Args:
        title: First line.
        results: What the rows add up to; None where there are none.
        pictures: By name: ``pareto``, ``regret``, ``vf``, ``curves``, whichever there are.
        curves: Of a training run.
        commands: That made the numbers.
        notes: What is missing, and why.
    """
    parts = [f"<h1>{escape(title)}</h1>"]
    shown = {name: _picture(picture) for name, picture in pictures.items()}
    if results:
        parts.append(f"<p class=soft>{escape(str(results.told))}</p>")
        parts.append(f'<p class="verdict{"" if results.best else " none"}">{escape(sentence(results))}</p>')
        parts.append(f"<h2>Comparison</h2>{shown.get('pareto', '')}{_summary(results.summary, results.best)}")
        if measured(results.summary):
            parts.append(f"<h2>Regret</h2>{shown.get('regret', '')}{_regret(results.summary)}")
        if results.live:
            parts.append(f"<h2>Live</h2>{_live(results.live)}")
        if "vf" in shown:
            parts.append(f"<h2>Operating points by layer</h2>{shown['vf']}")
        parts.append(f"<h2>By request type</h2>{_kinds(results.kinds)}")
    if curves:
        parts.append(f"<h2>Training</h2>{shown.get('curves', '')}")
    parts.append("<h2>Where the numbers come from</h2>")
    parts += [f"<pre>{escape(command)}</pre>" for command in commands]
    parts.append(_origin(results) if results else _facts({"clone-rl": __version__}))
    parts += [f"<p class=soft>{escape(note)}</p>" for note in notes]
    return (
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        f'<meta http-equiv=Content-Security-Policy content="{_POLICY}">'
        f"{MARK}<title>{escape(title)}</title><style>{_STYLE}</style></head>"
        f"<body>{''.join(parts)}</body></html>\n"
    )
