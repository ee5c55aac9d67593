import math

import pytest
import torch

from clone_rl.errors import BadValueError
from clone_rl.llm.sampling import Sampling

LOGITS = torch.tensor([0.0, 2.0, 1.0, -1.0, 1.5])


def draws(sampling, seed, count=4000):
    generator = torch.Generator().manual_seed(seed)
    return [sampling.pick(LOGITS, generator) for _ in range(count)]


def test_temperature_zero_takes_the_most_probable_token():
    assert set(draws(Sampling(0.0), 0, 50)) == {1}


def test_only_the_top_k_tokens_are_drawn():
    assert set(draws(Sampling(5.0, 3), 0)) == {1, 4, 2}
    assert set(draws(Sampling(5.0, 40), 0)) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("off", [0, -1, None])
def test_top_k_can_be_switched_off(off):
    everything = torch.zeros(100)
    generator = torch.Generator().manual_seed(0)
    sampling = Sampling(1.0, off)
    assert len({sampling.pick(everything, generator) for _ in range(1000)}) > 90
    assert (sampling.top_k, sampling) == (0, Sampling(1.0, 0))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_follow_the_tempered_softmax(temperature):
    drawn = torch.bincount(torch.tensor(draws(Sampling(temperature), 1)), minlength=5) / 4000
    assert torch.allclose(drawn, (LOGITS / temperature).softmax(0), atol=0.03)


def test_draws_depend_on_the_seed_alone():
    assert draws(Sampling(), 3, 100) == draws(Sampling(), 3, 100)
    assert draws(Sampling(), 3, 100) != draws(Sampling(), 4, 100)


@pytest.mark.parametrize(
    ("arguments", "named"), [((-0.1,), "-0.1"), ((math.nan,), "nan"), ((0.8, -2), "top_k is -2"), ((0.8, 2.5), "top_k is 2.5")]
)
def test_settings_without_meaning_are_refused(arguments, named):
    with pytest.raises(BadValueError, match=named):
        Sampling(*arguments)
