import itertools

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from clone_rl.agents.risk import expected_outcome
from clone_rl.envs.control import load_control

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def control():
    return load_control("layer")


@pytest.fixture(scope="module")
def expected(control):
    return expected_outcome(control)


def decoded(control, split):
    offset = control.traces.offset
    return np.concatenate([np.arange(offset[d] + 1, offset[d + 1]) for d in control.traces.documents(split)])


def test_it_is_what_happens_on_average_on_tokens_that_it_never_saw(control, expected):
    tokens = decoded(control, "test")
    happened = control.world.outcome[tokens]
    chance, nats = expected[tokens][..., 0], expected[tokens][..., 2]
    assert chance.mean(0) == pytest.approx(happened[..., 0].mean(0), abs=0.02)
    assert nats.mean(0) == pytest.approx(happened[..., 1].mean(0), abs=0.03)
    edges = np.quantile(chance, np.linspace(0, 1, 11))
    for low, high in itertools.pairwise(edges):
        these = (chance >= low) & (chance <= high)
        assert chance[these].mean() == pytest.approx(happened[..., 0][these].mean(), abs=0.03)


def test_it_tells_exits_apart_better_than_their_means_do(control, expected):
    tokens = decoded(control, "test")
    wrong, chance = control.world.outcome[tokens][..., 0], expected[tokens][..., 0]
    assert ((chance - wrong) ** 2).mean() < 0.85 * ((wrong.mean(0) - wrong) ** 2).mean()


def test_it_is_a_function_of_the_seed_and_leaves_other_random_numbers_alone(trace_folder):
    control = load_control("layer", traces=trace_folder)
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    first, again = expected_outcome(control), expected_outcome(control)
    assert torch.equal(before, torch.random.get_rng_state())
    assert first.tobytes() == again.tobytes() != expected_outcome(control, seed=1).tobytes()
    assert first[..., 1].tobytes() == control.world.outcome[..., 1].tobytes()
    assert not np.shares_memory(first, control.world.outcome)
