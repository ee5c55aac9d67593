"""What a report is made of: results gathered from rows, pictures, the page."""

import dataclasses
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from clone_rl.agents.heuristics import Fixed, Pace
from clone_rl.errors import BadFileError
from clone_rl.evaluation.figure import blank
from clone_rl.evaluation.learning_curves import Curves, draw_curves, event_folder, read_curves, settled
from clone_rl.evaluation.page import Picture, page, sentence
from clone_rl.evaluation.pareto_figure import draw_pareto, front, spread
from clone_rl.evaluation.protocol import evaluate
from clone_rl.evaluation.regret_figure import draw_regret, measured, parts_of
from clone_rl.evaluation.replay import groups
from clone_rl.evaluation.report import table
from clone_rl.evaluation.results import gather
from clone_rl.evaluation.rows import Origin
from clone_rl.evaluation.theme import DARK, LIGHT, drawn
from clone_rl.evaluation.vf_map import draw_vf_maps, vf_map

FAST, SLOW, PACE = Fixed("performance", 7), Fixed("powersave", 0), Pace(8, 0.9, 0.3)
EVIL = '<script>alert("x")</script>&'


@pytest.fixture(scope="module")
def judged(control):
    return evaluate(control, [FAST, SLOW, PACE], "test", 3, seeds=2, origin=Origin(EVIL))


@pytest.fixture(scope="module")
def results(judged):
    return gather(judged.requests, "rows.csv")


def with_regret(summary):
    """Summary rows with made-up regret."""
    shares = {"performance": (0.9, 0.3), "powersave": (-0.4, 0.3), "pace": (0.05, 0.2)}
    return [
        {**row, "regret": sum(s), "regret_ci": [sum(s) - 0.05, sum(s) + 0.1], "vf_regret": s[0], "exit_regret": s[1]}
        for row in summary
        for s in [shares[row["name"]]]
    ]


def test_rows_add_up_to_what_the_evaluation_said(judged, results):
    assert results.best == judged.best == "pace"
    for found, said in zip(results.summary, judged.summary, strict=True):
        for key, value in found.items():
            if not key.endswith("_ci"):
                assert value == said[key], key
    assert (results.requests, results.seeds, results.commands) == (18, judged.seeds, [EVIL])


def test_types_are_told_apart_and_make_up_the_whole(judged, results):
    assert list(results.kinds) == sorted({row["kind"] for row in judged.requests})
    for at, whole in enumerate(results.summary):
        parts = [rows[at] for rows in results.kinds.values()]
        assert sum(part["requests"] for part in parts) == whole["requests"]
        story = next(part for kind, rows in results.kinds.items() if kind == "story" for part in [rows[at]])
        own = [r for r in judged.requests if r["kind"] == "story" and r["controller"] == whole["name"]]
        expected = sum(r["energy_j"] for r in own) / sum(r["tokens"] for r in own)
        assert story["energy_per_token_j"] == pytest.approx(expected)


def test_rows_of_two_comparisons_are_refused_with_what_differs(judged):
    rows = [dict(row) for row in judged.requests]
    rows[-1]["max_miss"] = 0.5
    with pytest.raises(BadFileError, match=r"row 54: max_miss is 0\.5"):
        gather(rows, "rows.csv")
    with pytest.raises(BadFileError, match="'performance' and 'pace' have other requests"):
        gather(judged.requests[:-1], "rows.csv")
    with pytest.raises(BadFileError, match="has a request twice"):
        gather([*judged.requests, *judged.requests], "rows.csv")


def test_live_rows_stand_beside_their_replay(judged):
    live = [{**row, "mode": "live", "live": {"model": "m"}, "energy_j": 1.02 * row["energy_j"]} for row in judged.requests]
    found = gather([*live, *judged.requests], "rows.csv")
    assert found.mode == "replay"
    assert [row["energy_ratio"] for row in found.live] == pytest.approx([1.02] * 3)
    alone = gather(live, "rows.csv")
    assert (alone.mode, alone.live) == ("live", [])


def test_the_sentence_names_the_winner_the_distance_and_a_tie(results):
    low, high = (100 * end for end in results.summary[0]["over_best_ci"])
    assert sentence(results).startswith("pace uses the least energy within the constraints")
    assert f"performance, the next, uses {100 * results.summary[0]['over_best']:.1f} % more" in sentence(results)
    assert f"interval {low:.1f} to {high:.1f} %" in sentence(results)
    assert "tie" not in sentence(results)
    rows = [dict(row) for row in results.summary]
    rows[0] |= {"over_best": 0.004, "over_best_ci": [-0.001, 0.01]}
    assert "it is a tie" in sentence(dataclasses.replace(results, summary=rows))
    rows[0]["within_constraints"] = False
    assert "Nobody else" in sentence(dataclasses.replace(results, summary=rows))
    assert "no winner" in sentence(dataclasses.replace(results, best=""))


def test_who_breaks_a_constraint_is_shown_but_not_starred(results):
    text = page("a run", results, {}, None, [])
    (starred,) = re.findall(r"<td>(\w+) <span class=yes>&#9733;", text)
    assert starred == results.best == "pace"
    assert "<tr class=broken><td>powersave</td>" in text


def test_one_token_has_no_time_per_later_token(judged):
    rows = [dict(row) for row in judged.requests]
    before = gather(rows, "rows.csv").summary
    short = rows[0]["request"]
    for row in rows:
        if row["request"] == short:
            row |= {"tokens": 1, "tpot_s": 0.0, "late": 0}
    found = gather(rows, "rows.csv")
    for whole, row in zip(before, found.summary, strict=True):
        own = [r["tpot_s"] for r in rows if r["controller"] == row["name"] and r["tokens"] > 1]
        assert len(own) < whole["requests"]
        assert row["tpot_p50_s"] == np.percentile(own, 50)
    for row in rows:
        row |= {"tokens": 1, "tpot_s": 0.0, "late": 0}
    none = gather(rows, "rows.csv")
    assert {row["tpot_p50_s"] for row in none.summary} == {None}
    assert "TPOT p50" not in table(none.summary)
    assert "<td>-</td>" in page("a run", none, {}, None, [])


class Page(HTMLParser):
    """Every tag with its attributes, and whether tags are closed as they were opened."""

    def __init__(self, text):
        super().__init__()
        self.seen, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "source"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_escaped_and_asks_for_nothing_from_outside(results):
    png = {"light": b"\x89PNG light", "dark": b"\x89PNG dark"}
    pictures = {name: Picture(name, EVIL, EVIL, png) for name in ("pareto", "regret", "vf", "curves")}
    found = page(EVIL, results, pictures, None, [EVIL], [EVIL])
    parsed = Page(found)
    assert parsed.open == []
    assert "script" not in {tag for tag, _ in parsed.seen}
    links = [v for _, attributes in parsed.seen for k, v in attributes.items() if k in ("src", "srcset", "href")]
    assert links
    assert all(link.startswith("data:image/png;base64,") for link in links)
    assert "http" not in re.sub(r"http-equiv", "", found)
    assert "url(" not in found
    policy = next(a["content"] for tag, a in parsed.seen if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    for unit in ("(uJ)", "(mW)", "(ms)", "(nats)", "(%)", "(layers)"):
        assert unit in found
    for what in ("sha256", "evaluation seeds", "limits"):
        assert what in found


def test_the_front_is_of_those_whom_nobody_beats():
    rng = np.random.default_rng(2)
    rows = [{"energy_per_token_j": e, "dnll": d} for e, d in rng.random((40, 2))]
    edge = front(rows, "dnll")
    for row in rows:
        beaten = any(o["energy_per_token_j"] < row["energy_per_token_j"] and o["dnll"] < row["dnll"] for o in rows)
        assert (row in edge) != beaten


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_the_ring_has_the_colour_of_no_controller_and_a_name(results, theme):
    figure = blank(9, 4)
    draw_pareto(figure, theme, results)
    for axes in figure.axes:
        (ring,) = [line for line in axes.lines if line.get_markersize() == 15]
        assert ring.get_color() not in {*theme.series, theme.bad}
    assert "the winner" in [text.get_text() for text in figure.legends[0].get_texts()]


FIFTEEN = {
    "performance": (19.07, 0, 0, 0), "powersave": (17.43, 0.998, 0, 0), "ondemand": (13.8, 0, 0, 0),
    "static": (13.41, 0, 0, 0), "static-phase": (12.97, 0, 0, 0), "voltana": (10.91, 0, 0, 0), "slack": (11.14, 0, 0, 0),
    "pace": (9.73, 0, 0.0152, 0.0168),
    "edgebert": (9.94, 0, 0.0118, 0.014), "calm-race": (16.51, 0, 0.0152, 0.0184), "calm-pace": (10.13, 0, 0.0152, 0.0184),
    "random": (14.49, 0, 0.0202, 0.018), "default": (9.761, 0, 0.0101, 0.0141), "voice": (10.28, 0, 0.0337, 0.0215),
    "mine": (9.76, 0, 0.0152, 0.0161),
}  # fmt: skip
"""By name: uJ per token, late, disagreement, dNLL of an evaluation in the default scenario."""

CROWDS = {
    "measured": FIFTEEN,
    "nearly-one-point": {name: (9.7 + i / 1e4, 0.0, 0.015, 0.016) for i, name in enumerate(FIFTEEN)},
    "all-but-two-far": {name: (9.7 + i / 1e4 + 9 * (i > 1), 0.0, 0.015, 0.016) for i, name in enumerate(FIFTEEN)},
    "far-on-the-limits": {name: (9.7 + 9 * (i > 1), 0.01, 0.02, 0.02) for i, name in enumerate(FIFTEEN)},
    "long-names": {f"{name}-of-a-folder-with-a-name-at-great-length": figures for name, figures in FIFTEEN.items()},
    "no-interval": {"a": (9.7, 0.0, 0.0, 0.0), "b": (9.7, 0.0, 0.0, 0.0), "c": (19.0, 0.0, 0.0, 0.0)},
}


def crowd(results, kind):
    """Results with made-up controllers at those coordinates."""
    summary = []
    for name, (energy, *rates) in CROWDS[kind].items():
        row = {**results.summary[0], "name": name, "within_constraints": rates[0] <= 0.01 and rates[1] <= 0.02}
        wide = 0.0 if kind == "no-interval" else 0.06
        for key, value in zip(
            ("energy_per_token_j", "miss_rate", "disagreement", "dnll"), (energy / 1e6, *rates), strict=True
        ):
            row |= {key: value, f"{key}_ci": [(1 - wide) * value, (1 + wide) * value]}
        summary.append(row)
    return dataclasses.replace(results, summary=summary, best=min(CROWDS[kind], key=lambda name: CROWDS[kind][name][0]))


@pytest.mark.parametrize("kind", CROWDS)
def test_names_are_over_no_other_name_nor_marker_nor_frame(results, kind):
    figure, made = blank(12.5, 4.8), crowd(results, kind)
    draw_pareto(figure, LIGHT, made)
    figure.draw_without_rendering()
    least = min(row["energy_per_token_j"] for row in made.summary)
    far = [row["name"] for row in made.summary if row["energy_per_token_j"] > 1.3 * least]
    legend = figure.legends[0].get_window_extent()
    assert figure.bbox.x0 <= legend.x0
    assert legend.x1 <= figure.bbox.x1
    for axes in figure.axes:
        boxes = [text.get_window_extent() for text in axes.texts]
        assert len(boxes) == len(far)
        for at, box in enumerate(boxes):
            assert not any(box.overlaps(other) for other in boxes[:at])
            assert axes.bbox.x0 < box.x0
            assert box.x1 < axes.bbox.x1
            assert axes.bbox.y0 < box.y0
            assert box.y1 < axes.bbox.y1
            assert not legend.overlaps(box)
        marks = [line for line in axes.lines if line.get_marker() not in ("", "None", None)]
        for line in marks:
            radius = line.get_markersize() / 2 * figure.dpi / 72
            for x, y in line.get_transform().transform(line.get_xydata()):
                assert not any(b.x0 - radius < x < b.x1 + radius and b.y0 - radius < y < b.y1 + radius for b in boxes)
        bars = [axes.transData.transform(path) for bar in axes.collections for path in bar.get_segments()]
        assert all(path[:, 0].max() < box.x0 for path in bars for box in boxes)


def test_heights_are_spread_no_more_than_they_must():
    assert spread([0.3, 0.6], 0.1) == [0.3, 0.6]
    assert spread([1.0, 1.0, 1.0], 0.2) == pytest.approx([0.5, 0.7, 0.9])
    assert spread([], 0.1) == []


def test_parts_of_regret_add_up_and_the_third_is_part_of_the_second():
    row = {"regret": 0.3, "vf_regret": 0.1, "exit_regret": 0.2}
    assert [share for _, share in parts_of(row)] == pytest.approx([0.1, 0.2])
    parts = parts_of({**row, "causal_regret": 0.15})
    assert [share for _, share in parts] == pytest.approx([0.1, 0.05, 0.15])
    assert "no causal policy" in parts[2][0]
    assert parts_of({**row, "vf_regret": None}) == [("not told apart", 0.3)]


def test_regret_is_sorted_with_those_that_break_a_constraint_last(results):
    rows = with_regret(results.summary)
    assert [row["name"] for row in measured(rows)] == ["pace", "performance", "powersave"]
    assert measured(results.summary) == []


def test_pictures_come_in_both_themes(results):
    rows = with_regret(results.summary)
    made = [
        drawn(lambda figure, theme: draw_pareto(figure, theme, results), 9, 4),
        drawn(lambda figure, theme: draw_regret(figure, theme, rows), 8, 3),
    ]
    from io import BytesIO

    from PIL import Image

    for png in made:
        assert list(png) == ["light", "dark"]
        corners = {name: Image.open(BytesIO(data)).convert("RGB").getpixel((2, 2)) for name, data in png.items()}
        assert corners["light"] == tuple(bytes.fromhex(LIGHT.paper[1:]))
        assert corners["dark"] == tuple(bytes.fromhex(DARK.paper[1:]))


def test_a_map_shows_where_every_decoded_token_ran(judged, tmp_path):
    rows = [row for row in judged.requests if row["seed"] < 12]
    maps = [vf_map(group) for group in groups(rows, tmp_path / "rows.csv")]
    assert [one.name for one in maps] == ["performance", "powersave", "pace"]
    for one in maps:
        assert one.shares.sum(0) == pytest.approx(np.ones(10))
    assert (maps[0].shares[7] == 1).all()
    assert (maps[1].shares[0] == 1).all()
    own = [row for row in rows if row["controller"] == "pace"]
    decoded = sum(row["tokens"] - 1 for row in own)  # the first token is the prefill's, at full depth
    depth = (sum(row["depth"] for row in own) - 10 * len(own)) / decoded
    assert maps[2].shares[:-1].sum() == pytest.approx(depth)
    assert (np.diff(maps[2].shares[-1]) >= 0).all()
    assert drawn(lambda figure, theme: draw_vf_maps(figure, theme, maps), 8, 4)["dark"].startswith(b"\x89PNG")


@pytest.fixture(params=[("8", "9"), ("9", "10"), ("z", "a")], ids="-".join)
def events(tmp_path, request):
    """A run that was killed at step 30 and resumed from step 20; its files end in those, which do not tell their order."""
    writer_of = pytest.importorskip("torch.utils.tensorboard").SummaryWriter
    folder, same = tmp_path / "run" / "tensorboard", "events.out.tfevents.1800000000.host.7."
    for end, steps, first, shift in zip(
        request.param, (range(0, 40, 10), range(20, 60, 10)), (None, 20), (1.0, 0.0), strict=True
    ):
        writer = writer_of(str(folder / "new"), purge_step=first)
        for step in steps:
            writer.add_scalar("control/miss_rate", step / 1000 + shift, step)
            writer.add_scalar("multiplier/late", 1.0, step)
        writer.add_scalar("best/miss_rate", 1.0, 30 if first is None else 50)
        writer.close()
        next((folder / "new").iterdir()).rename(folder / f"{same}{end}")
    (folder / "new").rmdir()
    return tmp_path / "run"


def test_curves_of_a_resumed_run_are_those_of_one_run(events):
    curves = read_curves(event_folder(events))
    steps, values = curves.scalars["control/miss_rate"]
    assert steps.tolist() == [0, 10, 20, 30, 40, 50]
    assert values == pytest.approx([1.0, 1.01, 0.02, 0.03, 0.04, 0.05])
    assert curves.scalars["best/miss_rate"][0].tolist() == [50], "what was written after the resumed run's first step is void"
    png = drawn(lambda figure, theme: draw_curves(figure, theme, curves, {"max_miss": 0.01}), 8, 4)
    assert png["light"].startswith(b"\x89PNG")


STEPS = np.arange(60) * 32768
CLIFF = 9.3 + 28 * np.exp(-np.arange(60) / 2) + 0.05 * np.sin(np.arange(60))


@pytest.mark.parametrize("sign", [1, -1])
def test_an_early_cliff_does_not_flatten_what_follows(sign):
    low, high = settled([sign * CLIFF])
    late = sign * CLIFF[30:]
    assert low < late.min() - 0.2 * np.ptp(late)
    assert high > late.max() + 0.2 * np.ptp(late)
    assert high - low < 3 * np.ptp(late)
    assert settled([CLIFF], [12.0])[1] > 12.0, "a limit is seen as well"
    assert settled([np.sin(np.arange(60.0))]) is None, "nothing to cut"


def test_what_is_cut_off_is_marked_and_told():
    from matplotlib.text import Text

    figure, spiked = blank(12, 6), CLIFF.copy()
    spiked[5] = -4.0
    curves = Curves({"control/energy_per_token_j": (STEPS, spiked / 1e6), "control/miss_rate": (STEPS, np.ones(60))})
    draw_curves(figure, LIGHT, curves, {"max_miss": 0.01})
    axes, whole = figure.axes[:2]
    assert axes.get_title(loc="left") == "not shown: up to 37.3 at 0 M, down to -4 at 0.16 M"
    assert [line.get_marker() for line in axes.lines if line.get_linestyle() == "None"] == ["^", "v"]
    assert whole.get_title(loc="left") == ""
    figure.draw_without_rendering()
    (told,) = axes.findobj(lambda artist: isinstance(artist, Text) and artist.get_text().startswith("not shown"))
    assert told.get_window_extent().x1 < axes.bbox.x1


@pytest.mark.parametrize(
    "values",
    [
        [3.0] * 60, [7.0], [np.nan], [np.nan, 40.0, np.nan, *[9.0] * 9, np.nan, 9.1], [np.inf, *[1.0] * 9], [0.0] * 9,
        [30.0, *[0.0] * 9],
    ],
    ids=["constant", "one point", "no number", "gaps", "infinite", "zeros", "zeros after a cliff"],
)  # fmt: skip
@pytest.mark.filterwarnings("error")
def test_curves_of_any_shape_are_drawn(values):
    curves = Curves({"control/dnll": (STEPS[: len(values)], np.array(values))})
    png = drawn(lambda figure, theme: draw_curves(figure, theme, curves, {}), 12, 6)
    assert png["dark"].startswith(b"\x89PNG")


def test_event_files_that_hold_nothing_are_named(tmp_path):
    assert event_folder(tmp_path) is None
    (tmp_path / "tb").mkdir()
    (tmp_path / "tb" / "events.out.tfevents.1.host").write_bytes(b"\x00nothing of the kind" * 9)
    with pytest.raises(BadFileError, match="tb"):
        read_curves(event_folder(tmp_path))
