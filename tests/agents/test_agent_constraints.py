import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clone_rl.agents.constraints import Multiplier
from clone_rl.errors import BadValueError

costs = st.lists(st.floats(0, 1e6), min_size=1, max_size=50)
anything = st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=1, max_size=50)


@pytest.mark.parametrize("limit", [0.0, 0.01, 0.5])
def test_the_price_rises_while_a_limit_is_violated_up_to_its_ceiling(limit):
    price = Multiplier(limit)
    prices = [price.update(limit * 1.5 + 0.01) for _ in range(2000)]
    assert prices[0] > 2.0
    assert min(prices) > 2.0
    assert prices[5] < prices[20] < prices[-1] == price.ceiling


def test_the_price_falls_to_zero_while_a_limit_is_held():
    price = Multiplier(0.01)
    prices = [price.update(0.0) for _ in range(30)]
    assert prices == sorted(prices, reverse=True)
    assert prices[-1] == 0.0


def test_a_price_of_zero_recovers_at_once_when_the_limit_breaks():
    price = Multiplier(0.01)
    for _ in range(100):
        price.update(0.0)
    assert price.update(0.05) > 1.0


def test_a_worse_violation_costs_more():
    mild, grave = Multiplier(0.01), Multiplier(0.01)
    assert mild.update(0.012) < grave.update(0.02)


@given(st.floats(0, 1), costs)
def test_the_price_is_finite_and_within_its_bounds(limit, measured):
    price = Multiplier(limit)
    for cost in measured:
        value = price.update(cost)
        assert math.isfinite(value)
        assert 0 <= value <= price.ceiling


@given(st.floats(0, 1), costs, costs)
def test_a_checkpoint_continues_where_it_stopped(limit, before, after):
    price = Multiplier(limit)
    for cost in before:
        price.update(cost)
    again = Multiplier(limit)
    again.restore(json.loads(json.dumps(price.state())))
    assert [price.update(cost) for cost in after] == [again.update(cost) for cost in after]


@given(st.floats(0, allow_infinity=True), anything)
def test_whatever_is_measured_the_price_stays_a_number_within_its_bounds(limit, measured):
    price = Multiplier(limit)
    for cost in measured:
        assert 0 <= price.update(cost) <= price.ceiling
        assert all(math.isfinite(value) for value in price.state().values())


@given(st.floats(0, 1), costs, st.integers(0, 50))
def test_what_is_not_a_number_says_nothing(limit, measured, at):
    one, other = Multiplier(limit), Multiplier(limit)
    one_prices = [one.update(cost) for cost in measured]
    broken = [*measured[:at], math.nan, *measured[at:]]
    other_prices = [other.update(cost) for cost in broken]
    assert other_prices[:at] + other_prices[at + 1 :] == one_prices or at >= len(measured)
    assert one.state() == other.state()


@given(st.floats(0, 1), costs, st.floats(0, 1e6), st.floats(0, 1e6))
def test_a_higher_cost_never_makes_a_lower_price(limit, before, one, other):
    low, high = Multiplier(limit), Multiplier(limit)
    for cost in before:
        low.update(cost)
        high.update(cost)
    assert low.update(min(one, other)) <= high.update(max(one, other))


def test_an_infinite_cost_is_as_bad_as_any_and_an_infinite_limit_is_never_broken():
    assert Multiplier(0.01).update(math.inf) == Multiplier(0.01).update(1e9)
    free = Multiplier(math.inf, proportional=0.3)
    assert 2.0 > free.update(1e9) > free.update(math.inf)


@pytest.mark.parametrize("limit", [-0.1, math.nan, -math.inf])
def test_a_limit_that_makes_no_sense_is_refused(limit):
    with pytest.raises(BadValueError, match="limit is"):
        Multiplier(limit)


@pytest.mark.parametrize("limit", [0.01, 0.1, 0.4])
@pytest.mark.parametrize("start", [0.0, 2.0, 20.0])
def test_a_learner_of_discrete_actions_settles_on_the_limit(limit, start):
    # Two actions, as run and exit: an exit saves 1 and costs the constraint 0.5. The price that makes both alike is 2.
    price, odds, seen = Multiplier(limit, value=start), 0.0, []
    for _ in range(4000):
        exits = 1 / (1 + math.exp(-odds))
        seen.append(0.5 * exits)
        price.update(seen[-1])
        odds += 0.3 * (1.0 - 0.5 * price.value) * exits * (1 - exits) * 4
    assert sum(seen[-500:]) / 500 == pytest.approx(limit, rel=0.05)
    assert price.value == pytest.approx(2.0, rel=0.1)


def test_a_limit_of_zero_ends_the_action_that_breaks_it():
    price, odds = Multiplier(0.0), 0.0
    for _ in range(4000):
        exits = 1 / (1 + math.exp(-odds))
        price.update(0.5 * exits)
        odds += 0.3 * (1.0 - 0.5 * price.value) * exits * (1 - exits) * 4
    assert 0.5 * exits < 1e-3
    assert math.isfinite(price.value)
