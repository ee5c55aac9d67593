import json

import pytest
import torch

from clone_rl.llm.quality import (
    LIMITS,
    Judged,
    depth_at_quality,
    exit_figures,
    first_below,
    oracle_depth,
    quality_report,
)

EXITS = 4


def drawn(seed, tokens=150, kinds=(0, 1)):
    """Exits that get better with depth, of which the signals know a part."""
    generator = torch.Generator().manual_seed(seed)
    ease = torch.randn(tokens, generator=generator) * 2 + torch.linspace(-1, 4, EXITS)[:, None]
    agree = (torch.rand(EXITS, tokens, generator=generator) < ease.sigmoid()).float()
    kl = (-ease).exp() * -torch.rand(EXITS, tokens, generator=generator).log() * 0.05
    dnll = kl + torch.randn(EXITS, tokens, generator=generator) * kl.sqrt() * 0.3
    guess = ease + torch.randn(EXITS, tokens, generator=generator) * 0.5
    signals = torch.stack((guess.sigmoid(), (-guess).exp() * 0.05), -1)
    kind = torch.tensor(kinds)[torch.arange(tokens) % len(kinds)]
    return Judged(signals, agree, kl, dnll, torch.rand(tokens, generator=generator), kind)


def slow(data, choice):
    """Mean depth, dNLL and agreement of a choice, token by token; ``choice`` holds an exit layer, or L, for each."""
    depth = loss = same = 0.0
    dnll, agree = data.dnll.tolist(), data.agree.tolist()
    for t, layer in enumerate(choice):
        depth += layer / (EXITS + 1)
        loss += dnll[layer - 1][t] if layer <= EXITS else 0.0
        same += agree[layer - 1][t] if layer <= EXITS else 1.0
    return {"depth": depth / len(data.nll), "dnll": loss / len(data.nll), "agreement": same / len(data.nll)}


def first(scores, threshold):
    return next((e + 1 for e, score in enumerate(scores) if score <= threshold), EXITS + 1)


@pytest.fixture(scope="module")
def slices():
    return drawn(0), drawn(1)


@pytest.fixture(scope="module")
def found(slices):
    return depth_at_quality(*slices)


@pytest.mark.parametrize("limit", LIMITS)
def test_figures_of_every_way_equal_a_loop_over_the_tokens(slices, found, limit):
    data = slices[1]
    for way, score in (
        ("static", None),
        ("predicted_kl", data.signals[..., 1]),
        ("predicted_agreement", 1 - data.signals[..., 0]),
        ("true_kl", data.kl),
    ):
        outcome = dict(found[limit][way])
        if way == "static":
            layer = int(outcome.pop("layer"))
            expected = slow(data, [layer] * len(data.nll))
        else:
            threshold = outcome.pop("threshold")
            threshold = 1 - threshold if way == "predicted_agreement" else threshold
            expected = slow(data, [first(column, threshold) for column in score.T.tolist()])
        assert outcome == pytest.approx(expected, abs=2e-3 if way == "predicted_agreement" else 1e-6), way
        assert 0.2 < outcome["depth"] < 1 or way == "static"


@pytest.mark.parametrize("limit", LIMITS)
def test_thresholds_hold_on_the_slice_that_they_are_chosen_on_and_no_finer_grid_saves_much(slices, limit):
    data = slices[0]
    for way, score in (("predicted_kl", data.signals[..., 1]), ("true_kl", data.kl)):
        outcome = depth_at_quality(data, data)[limit][way]
        assert outcome["dnll"] <= LIMITS["dnll"] if limit == "dnll" else outcome["agreement"] >= LIMITS["agreement"]
        least = 1.0
        for threshold in score.flatten().sort().values[::9].tolist():
            tried = slow(data, [first(column, threshold) for column in score.T.tolist()])
            if tried["dnll"] <= LIMITS["dnll"] if limit == "dnll" else tried["agreement"] >= LIMITS["agreement"]:
                least = min(least, tried["depth"])
        assert outcome["depth"] == pytest.approx(least, abs=0.01)


def test_thresholds_are_chosen_without_a_look_at_the_slice_that_is_judged(slices):
    other = slices[1]._replace(dnll=slices[1].dnll + 1, agree=slices[1].agree * 0)
    for limit, ways in depth_at_quality(slices[0], other).items():
        for way in ("static", "predicted_kl", "predicted_agreement"):
            chosen = depth_at_quality(*slices)[limit][way]
            assert ways[way].get("threshold") == chosen.get("threshold")
            assert ways[way]["depth"] == chosen["depth"]
            assert way == "static" or ways[way]["dnll"] > LIMITS["dnll"]


def test_knowing_more_never_costs_depth(slices):
    data = slices[0]
    for ways in depth_at_quality(data, data).values():
        depth = {way: outcome["depth"] for way, outcome in ways.items()}
        assert depth["oracle"] < min(depth["true_kl"], depth["predicted_kl"])
        assert max(depth["true_kl"], depth["predicted_kl"]) < depth["static"]


@pytest.mark.parametrize("seed", range(5))
def test_the_oracle_of_agreement_equals_giving_up_the_dearest_tokens(seed):
    """Exact by hand: leave at the first exit that agrees; those that gain most by leaving at once may be wrong."""
    data = drawn(seed, 500)
    right = [first((1 - data.agree[:, t]).tolist(), 0.5) for t in range(500)]
    may = round(0.02 * 500)
    depth = (sum(right) - sum(layer - 1 for layer in sorted(right)[-may:])) / 500 / (EXITS + 1)
    assert oracle_depth(data, "agreement") == pytest.approx(depth, abs=1e-6)


def test_the_oracle_of_dnll_equals_trying_all_choices():
    generator = torch.Generator().manual_seed(3)
    dnll = torch.rand(2, 7, generator=generator) * torch.tensor([[0.2], [0.06]])
    data = Judged(torch.zeros(2, 7, 2), dnll * 0, dnll, dnll, dnll[0], torch.zeros(7, dtype=torch.long))
    table = [[(1 / 3, float(dnll[0, t])), (2 / 3, float(dnll[1, t])), (1.0, 0.0)] for t in range(7)]
    reached = [(0.0, 0.0)]
    for row in table:
        reached = [(d + depth, loss + cost) for d, loss in reached for depth, cost in row]
    best = min(depth for depth, loss in reached if loss <= 7 * LIMITS["dnll"] + 1e-9) / 7
    # The relaxed optimum may use a part of one more token, no more.
    assert best - 2 / 3 / 7 <= oracle_depth(data, "dnll") <= best + 1e-9


def test_exits_that_cost_nothing_are_all_left_at_once(slices):
    free = slices[1]._replace(dnll=slices[1].dnll * 0, agree=slices[1].agree * 0 + 1, kl=slices[1].kl * 0)
    for ways in depth_at_quality(free, free).values():
        assert [outcome["depth"] for outcome in ways.values()] == pytest.approx([0.2] * 5)


def test_exits_that_are_all_bad_leave_full_depth():
    bad = drawn(0)
    bad = bad._replace(dnll=bad.dnll * 0 + 9, agree=bad.agree * 0, kl=bad.kl * 0 + 9)
    for limit, ways in depth_at_quality(bad, bad).items():
        # 2 % of the tokens may differ, or lose all that all may lose.
        assert all(outcome["depth"] > 0.98 for outcome in ways.values())
        assert ways["static"] == {"depth": 1.0, "dnll": 0.0, "agreement": 1.0, "layer": EXITS + 1.0}, limit


def test_rows_of_exits_are_plain_means(slices):
    data = slices[1]
    for row, exit_row in enumerate(exit_figures(data)):
        assert exit_row["layer"] == row + 1
        for name in ("agree", "kl", "dnll"):
            values = getattr(data, name)[row].tolist()
            assert exit_row["agreement" if name == "agree" else name] == pytest.approx(sum(values) / len(values), abs=1e-5)
        said = data.signals[row].tolist()
        assert exit_row["agreement_mean"] == pytest.approx(sum(p for p, _ in said) / len(said), abs=1e-5)
        assert exit_row["kl_mean"] == pytest.approx(sum(k for _, k in said) / len(said), abs=1e-5)
        pairs = [(p, n) for (p, _), a in zip(said, data.agree[row], strict=True) if a
                 for (n, _), b in zip(said, data.agree[row], strict=True) if not b]  # fmt: skip
        assert exit_row["auc"] == pytest.approx(sum(p > n for p, n in pairs) / len(pairs), abs=1e-3)


def test_a_report_has_a_part_for_each_kind_that_both_slices_hold(slices):
    report = quality_report(drawn(0, kinds=(0, 1, 2)), slices[1])
    assert report.keys() == {"tokens", "nll", "layers", "depth_at_quality", "kinds"}
    assert list(report["kinds"]) == ["prose", "arithmetic"]
    assert report["tokens"] == sum(part["tokens"] for part in report["kinds"].values()) == 150
    assert report["kinds"]["prose"]["layers"] == exit_figures(slices[1].of(0))
    assert json.loads(json.dumps(report)) == report


def test_the_first_exit_at_or_below_a_threshold():
    score = torch.tensor([[0.5, 0.9, 0.9], [0.1, 0.4, 0.9], [0.9, 0.1, 0.9]])
    assert first_below(score, 0.4).tolist() == [1, 1, 3]
    assert first_below(score, 1.0).tolist() == [0, 0, 0]
