import numpy as np
import pytest
import torch

from clone_rl.llm.anatomy import Anatomy
from clone_rl.llm.exits import exit_statistics, hidden_statistics

pytest_plugins = ["llm_models"]

# The second one caps its logits: its tail is more than a norm and a head.
FAMILIES = ["llama", "gemma2 with soft-capped logits"]


def log_softmax(logits):
    top = logits.max()
    return logits - top - np.log(np.exp(logits - top).sum())


def naive(logs, targets):
    """Position by position and exit by exit; ``logs`` [position][layer] are log-probabilities."""
    layers, positions = len(logs[0]), len(targets)
    found = {name: np.zeros((layers - 1, positions)) for name in ("agree", "kl", "dnll")}
    found |= {name: np.zeros((layers, positions)) for name in ("margin", "entropy", "top")} | {"nll": np.zeros(positions)}
    for t in range(positions):
        full, target = logs[t][-1], int(targets[t])
        found["nll"][t] = -full[target]
        for e, log in enumerate(logs[t]):
            ordered = np.sort(log)
            found["top"][e, t] = log.argmax()
            found["margin"][e, t] = ordered[-1] - ordered[-2]
            found["entropy"][e, t] = -(np.exp(log) * log).sum()
            if e < layers - 1:
                found["agree"][e, t] = log.argmax() == full.argmax()
                found["kl"][e, t] = (np.exp(full) * (full - log)).sum()
                found["dnll"][e, t] = full[target] - log[target]
    return found


def states_of(model, tokens=20, seed=0):
    ids = torch.randint(64, (1, tokens), generator=torch.Generator().manual_seed(seed))
    anatomy = Anatomy(model)
    with torch.no_grad():
        return anatomy, [state[0, :-1] for state in anatomy.states(ids)], ids[0, 1:]


@pytest.mark.parametrize("family", FAMILIES)
def test_statistics_equal_a_naive_computation(tiny, family):
    anatomy, states, targets = states_of(tiny(family))
    with torch.no_grad():
        tails = [anatomy.tail(state[None])[0].double().numpy() for state in states]
    logs = [[log_softmax(tail[t]) for tail in tails] for t in range(len(targets))]
    found, expected = exit_statistics(anatomy, states, targets)._asdict(), naive(logs, targets)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert value.shape == expected[name].shape, name
        assert np.allclose(value.numpy(), expected[name], atol=2e-4, rtol=1e-4), name
    assert 0 < expected["agree"].mean() < 1
    assert (found["kl"] >= 0).all()
    assert found["kl"].max() > 0.01


@pytest.mark.parametrize("family", FAMILIES)
def test_the_nll_of_full_depth_is_the_loss_of_the_model(tiny, family):
    model = tiny(family)
    anatomy, states, targets = states_of(model, 30, 1)
    ids = torch.randint(64, (1, 30), generator=torch.Generator().manual_seed(1))
    found = exit_statistics(anatomy, states, targets)
    with torch.no_grad():
        assert float(found.nll.mean()) == pytest.approx(float(model(input_ids=ids, labels=ids).loss), rel=1e-4)


def test_an_exit_with_the_last_state_costs_nothing(tiny):
    anatomy, states, targets = states_of(tiny("llama"))
    found = exit_statistics(anatomy, [states[-1]] * 3, targets)
    assert (found.agree == 1).all()
    assert found.kl.max() < 1e-5
    assert (found.dnll == 0).all()
    assert (found.entropy[0] == found.entropy[2]).all()


def test_many_positions_are_the_same_as_few(tiny):
    anatomy, states, targets = states_of(tiny("llama"), 60)
    many = [state.repeat(5, 1) for state in states]  # more than are held at a time
    whole, once = exit_statistics(anatomy, many, targets.repeat(5)), exit_statistics(anatomy, states, targets)
    for together, alone in zip(whole, once, strict=True):
        assert together.shape[-1] == 5 * alone.shape[-1]
        for part in together.split(len(targets), -1):
            assert torch.allclose(part, alone, atol=1e-4)


def test_statistics_of_states_equal_a_naive_computation():
    generator = torch.Generator().manual_seed(0)
    before, after = torch.randn(2, 3, 8, generator=generator), torch.randn(2, 3, 8, generator=generator) * 5
    found = hidden_statistics(before, after).numpy()
    for at in np.ndindex(2, 3):
        b, a = before[at].double().numpy(), after[at].double().numpy()
        size = np.sqrt((a * a).sum())
        level = np.log10(np.sqrt((a * a).mean()))
        change, cosine = np.sqrt(((a - b) ** 2).sum()) / size, a @ b / size / np.sqrt((b * b).sum())
        assert found[at].tolist() == pytest.approx([level, change, cosine], abs=1e-5)


def test_statistics_of_a_state_of_zeros_are_finite():
    zeros = torch.zeros(4)
    assert hidden_statistics(zeros, zeros).isfinite().all()
    assert hidden_statistics(torch.ones(4), torch.ones(4)).tolist() == pytest.approx([0, 0, 1], abs=1e-6)
