"""What a report is made of: results gathered from rows, pictures, the page."""

import dataclasses
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from clone_rl.agents.heuristics import Fixed, Pace
from clone_rl.errors import BadFileError
from clone_rl.evaluation.figure import blank
from clone_rl.evaluation.learning_curves import draw_curves, event_folder, read_curves
from clone_rl.evaluation.page import Picture, page, sentence
from clone_rl.evaluation.pareto_figure import draw_pareto, front
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


def test_event_files_that_hold_nothing_are_named(tmp_path):
    assert event_folder(tmp_path) is None
    (tmp_path / "tb").mkdir()
    (tmp_path / "tb" / "events.out.tfevents.1.host").write_bytes(b"\x00nothing of the kind" * 9)
    with pytest.raises(BadFileError, match="tb"):
        read_curves(event_folder(tmp_path))
