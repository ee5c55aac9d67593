"""Evaluation seeds, and who wins."""

import numpy as np
import pytest

from clone_rl.agents.heuristics import Fixed, Pace
from clone_rl.agents.rollout import run_requests
from clone_rl.envs.figures import FIGURES
from clone_rl.envs.scenario import Limits
from clone_rl.errors import BadValueError
from clone_rl.evaluation.protocol import evaluate
from clone_rl.evaluation.statistics import Clusters
from clone_rl.evaluation.summary import paired, winner

FAST, SLOW, PACE = Fixed("performance", 7), Fixed("powersave", 0), Pace(8, 0.9, 0.3)
LOOSE = Limits(1.0, 1.0, 9.0)


@pytest.fixture(scope="module")
def three(control):
    return evaluate(control, [FAST, SLOW], "test", seed=5, seeds=3)


def test_every_seed_can_be_run_again_by_itself(control, three):
    assert three.seeds == [5, 14, 23]  # nine test documents
    assert [(row["name"], row["seed"]) for row in three.rows] == [(c.name, s) for c in (FAST, SLOW) for s in three.seeds]
    for row in three.rows:
        alone = evaluate(control, [FAST if row["name"] == FAST.name else SLOW], "test", seed=row["seed"])
        assert alone.rows == [row]


def test_no_two_requests_share_their_draws(three):
    for name in (FAST.name, SLOW.name):
        keys = [row["seed"] for row in three.requests if row["controller"] == name]
        assert len(set(keys)) == len(keys) == 27
    # In time, a request ends when its last token is due: at a slack of its own.
    fast = [row for row in three.requests if row["controller"] == FAST.name]
    assert len({(row["document"], row["time_s"]) for row in fast}) == 27


def test_the_summary_is_over_all_seeds(three):
    for summary in three.summary:
        own = [row for row in three.requests if row["controller"] == summary["name"]]
        assert summary["requests"] == len(own) == 27
        expected = sum(row["energy_j"] for row in own) / sum(row["tokens"] for row in own)
        assert summary["energy_per_token_j"] == pytest.approx(expected)
        assert summary["seed"] == 5


def test_some_requests_are_spread_over_the_split(control):
    few = evaluate(control, [FAST], "test", requests=3, repeats=2)
    documents = control.traces.documents("test")
    assert [row["document"] for row in few.requests] == np.repeat(documents[[0, 4, 8]], 2).tolist()
    assert len(evaluate(control, [FAST], "test", requests=1000).requests) == len(documents)


@pytest.mark.parametrize("wrong", [{"seeds": 0}, {"requests": 0}, {"seed": -1}, {"oracle_requests": -1}])
def test_numbers_that_mean_nothing_are_refused(control, wrong):
    with pytest.raises(BadValueError, match=next(iter(wrong)).replace("_", " ")):
        evaluate(control, [FAST], **wrong)


def test_draws_of_one_document_do_not_make_an_interval_narrower():
    rng = np.random.default_rng(1)
    documents, strata = np.arange(40), np.arange(40) % 4
    energy, tokens = rng.gamma(5.0, 1.0, 40), rng.integers(5, 20, 40)
    once = Clusters(documents, strata, 0).interval(energy, tokens)
    nine = Clusters(np.tile(documents, 9), np.tile(strata, 9), 0).interval(np.tile(energy, 9), np.tile(tokens, 9))
    assert nine == pytest.approx(once, rel=1e-12)


def test_a_type_with_one_document_does_not_take_the_spread_away():
    low, high = Clusters(np.arange(3), np.arange(3), 0).interval(np.array([1.0, 2.0, 3.0]), np.ones(3))
    assert low < 2.0 < high


def test_who_breaks_a_constraint_never_wins_however_cheap(control):
    judged = evaluate(control, [FAST, SLOW], "test")
    fast, slow = judged.summary
    assert slow["energy_per_token_j"] < fast["energy_per_token_j"]
    assert not slow["within_constraints"]
    assert judged.best == FAST.name == winner(judged.summary)
    assert evaluate(control, [FAST, SLOW], "test", limits=LOOSE).best == SLOW.name
    nobody = evaluate(control, [SLOW], "test")
    assert (nobody.best, nobody.summary[0]["over_best"]) == ("", None)


def test_the_distance_to_the_winner_is_paired(control):
    documents = control.traces.documents("test")
    figures = run_requests(control, PACE, "test", documents, 0)
    strata = control.traces.kind[documents]
    dearer = figures.copy()
    dearer["energy_j"] *= 1.1
    found = paired(dearer, figures, strata, 0)
    # Requests differ by a factor of two, their ratios not at all.
    assert found["over_best"] == pytest.approx(0.1)
    assert found["over_best_ci"] == pytest.approx([0.1, 0.1])
    longer = figures.copy()
    longer["tokens"] *= 2
    longer["energy_j"] *= 2
    assert paired(longer, figures, strata, 0)["over_best"] == pytest.approx(0.0)


def test_a_runner_of_ones_own_is_asked_for_every_controller_and_seed(control):
    asked = []

    def run(control, controller, split, documents, seed):
        asked.append((controller.name, split, len(documents), seed))
        found = np.zeros(len(documents), FIGURES)
        found["document"], found["tokens"], found["time_s"], found["energy_j"] = documents, 4, 1.0, 1e-3
        return found

    evaluate(control, [FAST, SLOW], "test", 2, seeds=2, run=run)
    assert asked == [(c.name, "test", 9, s) for c in (FAST, SLOW) for s in (2, 11)]
