import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clone_rl.agents.constraints import Multiplier

costs = st.lists(st.floats(0, 1e6), min_size=1, max_size=50)


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
