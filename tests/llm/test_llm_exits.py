import numpy as np
import pytest
import torch

from clone_rl.llm.exits import exit_statistics
from clone_rl.llm.model import hidden_states

pytest_plugins = ["llm_models"]


def log_softmax(logits):
    top = logits.max()
    return logits - top - np.log(np.exp(logits - top).sum())


def naive(model, states, targets):
    """Position by position and exit by exit, in float64."""
    exits, positions = len(states) - 1, len(targets)
    agree, kl, dnll, nll = (np.zeros((exits, positions)) for _ in range(4))
    for t in range(positions):
        with torch.inference_mode():
            logs = [log_softmax(model.lm_head(model.model.norm(s[t])).double().numpy()) for s in states]
        full, target = logs[-1], int(targets[t])
        for e in range(exits):
            agree[e, t] = logs[e].argmax() == full.argmax()
            kl[e, t] = (np.exp(full) * (full - logs[e])).sum()
            dnll[e, t] = full[target] - logs[e][target]
            nll[e, t] = -full[target]
    return agree, kl, dnll, nll[0]


@pytest.mark.parametrize("seed", [0, 1])
def test_statistics_equal_a_naive_computation(tiny, seed):
    model = tiny("llama", 8.0, seed)
    ids = torch.randint(64, (1, 20), generator=torch.Generator().manual_seed(seed))
    states = hidden_states(model, ids)
    found = exit_statistics(model, states[:, :-1], ids[0, 1:])
    expected = naive(model, states[:, :-1], ids[0, 1:])
    for name, value in zip(found._fields, expected, strict=True):
        assert np.allclose(getattr(found, name).numpy(), value, atol=2e-5), name
    assert found.agree.shape == found.kl.shape == found.dnll.shape == (3, 19)
    assert found.nll.shape == (19,)
    assert 0 < found.agree.mean() < 1
    assert (found.kl >= 0).all()
    assert found.kl.max() > 0.01


def test_an_exit_with_the_last_state_costs_nothing(tiny):
    model = tiny("llama", 8.0)
    states = hidden_states(model, torch.arange(3, 15)[None])
    found = exit_statistics(model, states[-1:].repeat(3, 1, 1), torch.arange(12))
    assert (found.agree == 1).all()
    assert (found.kl == 0).all()
    assert (found.dnll == 0).all()


def test_nll_is_the_loss_of_the_model(tiny):
    model, ids = tiny("llama"), torch.arange(5, 30)[None]
    found = exit_statistics(model, hidden_states(model, ids)[:, :-1], ids[0, 1:])
    with torch.inference_mode():
        assert float(found.nll.mean()) == pytest.approx(float(model(input_ids=ids, labels=ids).loss), rel=1e-5)
