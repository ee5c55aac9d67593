import dataclasses

import numpy as np
import pytest

from clone_rl.envs.trace import SPLITS
from clone_rl.errors import BadValueError, UnknownNameError
from clone_rl.evaluation.trace_figure import draw_traces
from clone_rl.evaluation.trace_summary import auc, calibration_error, summarise


def test_the_area_is_the_chance_that_a_positive_scores_above_a_negative():
    rng = np.random.default_rng(3)
    score, label = rng.integers(0, 12, 90) / 12, rng.integers(0, 2, 90).astype(float)
    pairs = [(a > b) + 0.5 * (a == b) for a in score[label == 1] for b in score[label == 0]]
    assert auc(score, label) == pytest.approx(np.mean(pairs), abs=1e-12)
    assert np.isnan(auc(score, np.ones(90)))


def test_the_calibration_error_is_the_distance_of_stated_and_observed_rates():
    rng = np.random.default_rng(4)
    stated = np.concatenate([rng.random(200), [0.0, 1.0]])
    label = (rng.random(202) < stated).astype(float)
    expected = 0.0
    for low in range(10):
        rows = np.clip(np.floor(stated * 10), 0, 9) == low
        expected += rows.mean() * abs(stated[rows].mean() - label[rows].mean())
    assert calibration_error(stated, label) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("split", ["", *SPLITS])
def test_figures_are_means_over_the_tokens_of_the_chosen_documents(traces, split):
    found = summarise(traces, split)
    chosen = [d for d in range(len(traces.split)) if not split or SPLITS[traces.split[d]] == split]
    tokens = np.concatenate([np.arange(*traces.offset[d : d + 2]) for d in chosen])
    assert sum(found["tokens"].values()) == len(tokens)
    assert sum(sum(counts.values()) for counts in found["requests"].values()) == len(chosen)
    for row, column in zip(found["exits"], range(traces.layers - 1), strict=True):
        assert row["layer"] == column + 1
        assert row["agreement"] == pytest.approx(traces.agree[tokens, column].mean(), abs=1e-6)
        assert row["entropy"] == pytest.approx(traces.entropy[tokens, column].mean(), rel=1e-5)
        assert row["kl_predicted"] == pytest.approx(traces.signal[tokens, column, 1].mean(), rel=1e-5)
        area = auc(traces.signal[tokens, column, 0], traces.agree[tokens, column])
        assert row["auc"] == pytest.approx(area, nan_ok=True)
    assert found["full_depth"]["margin"] == pytest.approx(traces.margin[tokens, -1].mean(), rel=1e-5)


def test_kinds_that_the_split_lacks_are_left_out_and_their_sum_is_the_whole(traces):
    stories = dataclasses.replace(traces, kind=np.where(traces.split == 2, 0, traces.kind))
    assert list(summarise(stories, "test")["exits_by_kind"]) == ["story"]
    found = summarise(traces)
    assert list(found["exits_by_kind"]) == traces.kinds
    weights = np.array([found["tokens"][kind] for kind in traces.kinds])
    for name in ("agreement", "kl", "dnll", "margin"):
        means = [found["exits_by_kind"][kind][3][name] for kind in traces.kinds]
        assert np.average(means, weights=weights) == pytest.approx(found["exits"][3][name], rel=1e-9)


def test_the_share_of_sampled_tokens_counts_tokens(traces):
    sampled = np.zeros_like(traces.sampled)
    sampled[4] = 1
    found = summarise(dataclasses.replace(traces, sampled=sampled))
    assert found["sampled"] == pytest.approx(np.diff(traces.offset)[4] / traces.offset[-1])


def test_splits_that_are_not_there_are_named(traces):
    with pytest.raises(UnknownNameError, match="tests"):
        summarise(traces, "tests")
    with pytest.raises(BadValueError, match="no validation documents"):
        summarise(dataclasses.replace(traces, split=np.zeros_like(traces.split)), "validation")


@pytest.mark.parametrize("kinds", [1, 4])
def test_the_picture_is_a_png(traces, tmp_path, kinds):
    few = dataclasses.replace(
        traces, kind=traces.kind % kinds, agree=np.ones_like(traces.agree) if kinds == 1 else traces.agree
    )
    draw_traces(tmp_path / "p.png", summarise(few), "a title")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
