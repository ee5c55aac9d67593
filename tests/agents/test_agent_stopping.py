"""The best causal stopping rule: no better than what is seen allows, and no worse than rules that see the same."""

from dataclasses import replace

import numpy as np
import pytest

from clone_rl.agents.stopping import Sight, Stopping, best_depths, binned
from clone_rl.envs.scenario import Limits
from clone_rl.envs.trace import HIDDEN, TraceSet

LAYERS, TOKENS = 6, 6
ALL = Limits(np.inf, np.inf, np.inf)


def trace_set(documents, signal_of, seed=0):
    """Tokens that full depth's answer is settled for from some layer on, and a probe that shows ``signal_of`` it.

    Responses have six tokens, of which five are decoded; every third document is of the test split.
    """
    rng = np.random.default_rng(seed)
    tokens, exits = documents * TOKENS, LAYERS - 1
    settled = rng.choice(np.arange(1, LAYERS + 1), tokens, p=[0.1, 0.2, 0.3, 0.2, 0.15, 0.05])
    agree = (np.arange(1, LAYERS) >= settled[:, None]).astype(np.float32)
    noise = rng.random((tokens, exits, len(HIDDEN) + 1)).astype(np.float32)
    return TraceSet(
        card={"layers": LAYERS, "kinds": ["one", "two"]},
        offset=np.arange(documents + 1) * TOKENS,
        prompt_tokens=rng.integers(4, 41, documents),
        split=np.arange(documents) % 3,
        kind=np.arange(documents) % 2,
        sampled=np.ones(documents, np.int64),
        signal=np.stack([signal_of(agree, rng), noise[..., 0]], 2).astype(np.float32),
        agree=agree,
        kl=(1.0 - agree) * 0.7,
        dnll=(1.0 - agree) * 0.5,
        hidden=noise[..., 1:],
        margin=rng.random((tokens, LAYERS)).astype(np.float32),
        entropy=rng.random((tokens, LAYERS)).astype(np.float32),
    )


def decoded(traces, split=2):
    """Rows of the decoded tokens of a split."""
    rows = np.arange(len(traces.agree))
    return rows[(rows % TOKENS > 0) & (traces.split[rows // TOKENS] == split)]


def judged(traces, depth):
    """Mean depth of the decoded tokens of the test split, and disagreements per emitted token."""
    rows = decoded(traces)
    leaving = rows[depth[rows] < LAYERS]
    wrong = 1.0 - traces.agree[leaving, depth[leaving] - 1]
    return depth[rows].mean(), wrong.sum() / (len(rows) * TOKENS / (TOKENS - 1))


def thresholds(traces, limit):
    """Mean depths of the rules that leave where the probe passes a bar, and hold the limit on the test split."""
    found = []
    for bar in np.linspace(0.02, 0.98, 97):
        sure = traces.signal[..., 0] >= bar
        depth, wrong = judged(traces, np.where(sure.any(1), sure.argmax(1) + 1, LAYERS))
        if wrong <= limit:
            found.append(depth)
    return found


def oracle(traces, limit):
    """Least mean depth within the limit with everything known: the latest tokens leave at once, the others when settled."""
    rows = decoded(traces)
    settled = np.sort(np.where(traces.agree.any(1), traces.agree.argmax(1) + 1, LAYERS)[rows])
    settled[len(rows) - int(limit * len(rows) * TOKENS / (TOKENS - 1)) :] = 1
    return settled.mean()


def test_signals_that_tell_the_outcome_make_it_the_oracle():
    traces = trace_set(90, lambda agree, _: agree)
    depth, rows = best_depths(traces, "test", Limits(0.0, 0.0, 0.0)), decoded(traces)
    settled = np.where(traces.agree.any(1), traces.agree.argmax(1) + 1, LAYERS)
    assert (depth[rows] == settled[rows]).all()
    others = np.setdiff1d(np.arange(len(depth)), rows)
    assert (depth[others] == LAYERS).all()


def test_signals_that_tell_nothing_leave_the_best_static_depth():
    traces = trace_set(3000, lambda agree, rng: rng.random(agree.shape))
    rows = decoded(traces)
    wrong = 1.0 - traces.agree[rows].mean(0)
    static = 4
    limits = Limits(1.0, float(wrong[static - 1]) * (TOKENS - 1) / TOKENS, np.inf)
    mean, differs = judged(traces, best_depths(traces, "test", limits))
    assert differs <= limits.disagree
    assert static - 0.25 < mean <= static  # what luck alone is worth in hindsight


@pytest.mark.parametrize("sharp", [1.0, 2.0, 4.0])
def test_no_rule_that_sees_the_same_is_better(sharp):
    def chance(agree, rng):
        return 1.0 / (1.0 + np.exp(-sharp * (2.0 * agree - 1.0) - rng.normal(0.0, 1.5, agree.shape)))

    traces = trace_set(600, chance)
    limits = Limits(1.0, 0.1, np.inf)
    mean, wrong = judged(traces, best_depths(traces, "test", limits))
    assert wrong <= 0.1
    assert mean < min(thresholds(traces, 0.1)) + 0.02
    assert mean > oracle(traces, 0.1) + 0.1  # nor does it know what is not to be seen


def test_what_happens_to_tokens_that_it_does_not_learn_from_changes_nothing():
    traces = trace_set(60, lambda agree, rng: agree * rng.random(agree.shape))
    sight = Sight.of(traces)
    learned = np.arange(100)
    found = Stopping(sight, learned).depths(5.0, 1.0)
    wrong = sight.wrong.copy()
    wrong[100:] = 1.0 - wrong[100:]
    assert (Stopping(sight._replace(wrong=wrong), learned).depths(5.0, 1.0) == found).all()
    assert (Stopping(sight._replace(wrong=wrong)).depths(5.0, 1.0) != found).any()
    assert len(np.unique(found)) > 2


def test_a_rule_for_tokens_that_it_never_saw_is_no_better_than_one_in_hindsight():
    traces = trace_set(300, lambda agree, rng: agree * 0.5 + rng.random(agree.shape) * 0.5)
    limits = Limits(1.0, 0.05, np.inf)
    hindsight, other = (judged(traces, best_depths(traces, "test", limits, learned))[0] for learned in (None, ("train",)))
    assert hindsight < other < LAYERS


def test_free_exits_are_taken_at_once_and_forbidden_ones_never():
    traces = trace_set(30, lambda agree, rng: rng.random(agree.shape))
    assert (best_depths(traces, "test", ALL)[decoded(traces)] == 1).all()
    sight = Sight.of(traces, ("test",))
    assert (Stopping(sight).depths(0.0, 0.0) == 1).all()
    assert (Stopping(sight._replace(wrong=np.ones_like(sight.wrong))).depths(100.0, 0.0) == LAYERS).all()


def test_what_is_seen_is_what_controllers_see_and_in_order():
    traces = trace_set(9, lambda agree, rng: rng.random(agree.shape))
    sight = Sight.of(traces, ("test",))
    assert sight.row.tolist() == decoded(traces).tolist()
    assert sight.seen.shape[:2] == (LAYERS - 1, len(sight.row))
    shown = traces.packed[0][sight.row]
    for after in range(LAYERS - 1):
        order = np.argsort(shown[:, after, 0])
        assert (np.diff(sight.seen[after, order, 0].astype(int)) >= 0).all()
        if after:  # the exit before is seen, the one after is not
            assert (sight.seen[after, :, 2] == sight.seen[after - 1, :, 0]).all()
    later = traces.signal.copy()
    later[:, 3:] = 0.5
    changed = Sight.of(replace(traces, signal=later), ("test",))
    assert (changed.seen[:3] == sight.seen[:3]).all()


def test_bins_keep_the_order_and_hold_as_many_values_each():
    values = np.random.default_rng(0).normal(size=6400)
    found = binned(values)
    assert (np.diff(found[np.argsort(values)].astype(int)) >= 0).all()
    assert np.bincount(found).min() > 150
    assert len(np.bincount(found)) == 32
    assert len(np.unique(binned(np.repeat([0.0, 1.0], 50)))) == 2
