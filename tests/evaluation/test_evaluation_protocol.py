import dataclasses
import json

import numpy as np
import pytest

from clone_rl.agents.heuristics import Fixed, Pace
from clone_rl.envs.figures import FIGURES
from clone_rl.envs.scenario import Limits
from clone_rl.errors import BadValueError, UnknownNameError
from clone_rl.evaluation.protocol import evaluate
from clone_rl.evaluation.report import table
from clone_rl.evaluation.summary import summarise

CONTROLLERS = [Fixed("performance", 7), Fixed("powersave", 0), Pace(8, 0.9, 0.3)]
NOTHING = Limits(1, 1, 1e9)


@pytest.fixture(scope="module")
def evaluation(control):
    return evaluate(control, CONTROLLERS, "test", seed=3, repeats=2)


def by_controller(evaluation, name):
    return [row for row in evaluation.requests if row["controller"] == name]


def test_every_controller_meets_the_same_requests(evaluation, traces):
    expected = np.repeat(traces.documents("test"), 2).tolist()
    runs = [by_controller(evaluation, c.name) for c in CONTROLLERS]
    for run in runs:
        assert [row["document"] for row in run] == expected
        assert [row["seed"] for row in run] == [3 + i for i in range(len(expected))]
        for row, same in zip(run, runs[0], strict=True):
            assert (row["slo"], row["tokens"], row["kind"]) == (same["slo"], same["tokens"], same["kind"])
        assert [row["kind"] for row in run] == [traces.kinds[traces.kind[d]] for d in expected]


def test_repeats_of_a_document_are_other_draws(evaluation):
    rows = by_controller(evaluation, "performance")
    pairs = list(zip(rows[::2], rows[1::2], strict=True))
    assert all(a["document"] == b["document"] for a, b in pairs)
    assert any(a["time_s"] != b["time_s"] for a, b in pairs)


def test_a_controller_is_judged_the_same_in_any_company(control, evaluation):
    alone = evaluate(control, [CONTROLLERS[2]], "test", seed=3, repeats=2)
    assert alone.rows[0] == evaluation.rows[2]
    assert alone.requests == by_controller(evaluation, "pace")


def test_the_summary_is_what_the_requests_add_up_to(evaluation):
    for summary in evaluation.summary:
        rows = by_controller(evaluation, summary["name"])
        total = {key: sum(row[key] for row in rows) for key in FIGURES.names}
        assert summary["energy_per_token_j"] == pytest.approx(total["energy_j"] / total["tokens"])
        assert summary["avg_power_w"] == pytest.approx(total["energy_j"] / total["time_s"])
        assert summary["miss_rate"] == pytest.approx(total["late"] / total["tokens"])
        assert summary["mean_depth"] == pytest.approx(total["depth"] / total["tokens"])
        assert summary["overhead"] == pytest.approx((total["probe_j"] + total["policy_j"]) / total["energy_j"])
        assert summary["ttft_p50_s"] == pytest.approx(np.median([row["ttft_s"] for row in rows]))
        for key in ("energy_per_token_j", "avg_power_w", "miss_rate", "disagreement", "dnll", "mean_depth"):
            low, high = summary[f"{key}_ci"]
            assert low - 1e-12 <= summary[key] <= high + 1e-12, key


def test_full_depth_is_full_depth(evaluation):
    performance, powersave, pace = evaluation.summary
    assert performance["mean_depth"] == powersave["mean_depth"] == 10 > pace["mean_depth"]
    assert performance["disagreement"] == performance["dnll"] == 0
    assert performance["overhead"] == 0 < pace["overhead"] < 0.2
    assert performance["settings"] == {"point": 7}


def test_an_evaluation_is_plain_data(evaluation):
    data = json.loads(json.dumps(evaluation.as_json()))
    assert [row["name"] for row in data["rows"]] == [c.name for c in CONTROLLERS]
    assert (data["split"], data["seed"]) == ("test", 3)
    json.dumps(evaluation.requests)


@pytest.mark.parametrize(
    ("controllers", "arguments"),
    [(CONTROLLERS[:1] * 2, {}), ([Pace(8), Pace(8, boost=1)], {}), (CONTROLLERS, {"repeats": 0})],
    ids=["twice the same", "one name for two", "no repeats"],
)
def test_ambiguous_evaluations_are_refused(control, controllers, arguments):
    with pytest.raises(BadValueError):
        evaluate(control, controllers, **arguments)


def test_an_unknown_split_is_refused(control):
    with pytest.raises(UnknownNameError, match="did you mean 'test'"):
        evaluate(control, CONTROLLERS, "tests")


def test_progress_wraps_the_controllers(control):
    seen = []
    evaluate(control, CONTROLLERS[:2], progress=lambda controllers: (seen.append(c.name) or c for c in controllers))
    assert seen == ["performance", "powersave"]


@pytest.fixture
def figures(evaluation):
    rows = by_controller(evaluation, "pace")
    found = np.zeros(len(rows), FIGURES)
    for name in found.dtype.names:
        found[name] = [row[name] for row in rows]
    return found


def changed(figures, name, values):
    found = figures.copy()
    found[name] = values
    return found


@pytest.mark.parametrize(
    ("figure", "limits", "power_w"),
    [
        ("late", Limits(0.1, 1, 1e9), 9),
        ("disagree", Limits(1, 0.1, 1e9), 9),
        ("dnll", Limits(1, 1, 0.1), 9),
        ("energy_j", NOTHING, 1e-6),
    ],
)
def test_one_broken_limit_is_enough(figures, figure, limits, power_w):
    strata = np.zeros(len(figures["tokens"]), int)
    worse = changed(figures, figure, figures["tokens"] * 0.2) if figure != "energy_j" else figures
    assert summarise("x", worse, strata, NOTHING, 9, 0)["within_constraints"] is True
    assert summarise("x", worse, strata, limits, power_w, 0)["within_constraints"] is False
    better = changed(figures, figure, figures["tokens"] * 1e-12)
    assert summarise("x", better, strata, limits, power_w, 0)["within_constraints"] is True


def test_a_chip_above_its_power_limit_is_not_within_limits(control):
    chip = control.emulator.chip
    for limit_w, held in ((1e-6, False), (9.0, True)):
        emulator = dataclasses.replace(chip, power=dataclasses.replace(chip.power, limit_w=limit_w))
        altered = type(control.emulator)(emulator, control.emulator.workload)
        row = evaluate(dataclasses.replace(control, emulator=altered), CONTROLLERS[:1], limits=NOTHING).summary[0]
        assert row["within_constraints"] is held


def test_the_table_has_a_line_for_each_controller_with_its_energy_and_verdict(evaluation):
    lines = table(evaluation.summary).splitlines()
    assert len(lines) == 2 + len(CONTROLLERS)
    assert len({len(line) for line in lines}) == 1
    assert set(lines[1]) == {"|", "-"}
    for line, row in zip(lines[2:], evaluation.summary, strict=True):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[0] == row["name"]
        assert cells[1].startswith(f"{row['energy_per_token_j'] * 1e6:.3f} [")
        assert cells[-1] == ("yes" if row["within_constraints"] else "no")


@pytest.mark.parametrize("figure", ["energy_j", "ttft_s", "dnll"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nothing_is_concluded_from_a_figure_that_is_no_number(figures, figure, value):
    broken, strata = figures.copy(), np.zeros(len(figures), int)
    broken[figure][3] = value
    with pytest.raises(BadValueError, match=f"{figure} of request 3 under x is {value} .*SI units"):
        summarise("x", broken, strata, NOTHING, 9, 0)
