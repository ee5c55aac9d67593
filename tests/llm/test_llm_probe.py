import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from clone_rl.errors import BadFileError
from clone_rl.llm.probe import Probe, auc, calibration_error, fit_probe, load_probe

EXITS, TOKENS, WIDTH = 2, 3000, 24


def planted(seed):
    """States whose agreement and KL are a linear read-out of their direction, different at every exit."""
    generator = torch.Generator().manual_seed(seed)
    read = torch.randn(EXITS, 2, WIDTH, generator=torch.Generator().manual_seed(99)) / WIDTH**0.5
    hidden = torch.randn(EXITS, TOKENS, WIDTH, generator=generator)
    raw = torch.einsum("ltd,lsd->lts", F.rms_norm(hidden, (WIDTH,)), read) * 6
    agree = (torch.rand(EXITS, TOKENS, generator=generator) < raw[..., 0].sigmoid()).float()
    mean = F.softplus(raw[..., 1] / 3)
    kl = mean * -torch.rand(EXITS, TOKENS, generator=generator).clamp_min(1e-6).log()
    # The length of a state says nothing: the probe reads the normalised one.
    return hidden * torch.rand(EXITS, TOKENS, 1, generator=generator) * 10, agree, kl, mean


@pytest.fixture(scope="module")
def fitted():
    hidden, agree, kl, _ = planted(0)
    return fit_probe(hidden, agree, kl)


@pytest.mark.parametrize("layer", [1, 2])
def test_a_fitted_probe_predicts_agreement_on_other_states(fitted, layer):
    hidden, agree, _, _ = planted(1)
    signal = fitted.signals(hidden[layer - 1], layer)[:, 0]
    assert auc(signal, agree[layer - 1]) > 0.9
    assert calibration_error(signal, agree[layer - 1]) < 0.1
    assert auc(fitted.signals(hidden[layer - 1], 3 - layer)[:, 0], agree[layer - 1]) < 0.8


@pytest.mark.parametrize("layer", [1, 2])
def test_a_fitted_probe_predicts_the_mean_of_kl(fitted, layer):
    hidden, _, kl, mean = planted(1)
    signal = fitted.signals(hidden[layer - 1], layer)[:, 1]
    assert torch.corrcoef(torch.stack([signal, mean[layer - 1]]))[0, 1] > 0.9
    assert signal.mean() == pytest.approx(float(kl[layer - 1].mean()), rel=0.1)


def test_fitting_is_deterministic():
    hidden, agree, kl, _ = planted(0)
    one, same, other = (fit_probe(hidden, agree, kl, steps=5, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.weight, same.weight)
    assert not torch.equal(one.weight, other.weight)


@given(st.integers(0, 1000), st.floats(0.1, 1e3))
def test_signals_are_a_probability_and_nats_and_ignore_the_length_of_the_state(seed, scale):
    generator = torch.Generator().manual_seed(seed)
    probe = Probe(torch.randn(3, 2, 8, generator=generator), torch.randn(3, 2, generator=generator))
    hidden = torch.randn(5, 7, 8, generator=generator)
    for layer in (1, 2, 3):
        signals = probe.signals(hidden, layer)
        assert signals.shape == (5, 7, 2)
        assert ((signals[..., 0] >= 0) & (signals[..., 0] <= 1)).all()
        assert (signals[..., 1] >= 0).all()
        assert torch.allclose(probe.signals(hidden * scale, layer), signals, atol=1e-3, rtol=1e-3)
        assert torch.allclose(probe.signals(hidden[2, 3], layer), signals[2, 3], atol=1e-5)


def test_a_probe_comes_back_from_its_file(fitted, tmp_path):
    fitted.save(tmp_path / "probe.safetensors")
    loaded = load_probe(tmp_path / "probe.safetensors")
    assert torch.equal(loaded.weight, fitted.weight)
    assert torch.equal(loaded.bias, fitted.bias)


@pytest.mark.parametrize("content", [None, b"", b"not a probe at all"])
def test_a_file_that_is_no_probe_is_refused(tmp_path, content):
    path = tmp_path / "probe.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadFileError, match="is not an exit probe"):
        load_probe(path)


@pytest.mark.parametrize(
    ("score", "label", "area"),
    [
        ([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1], 0.75),
        ([1, 2, 3, 4], [0, 0, 1, 1], 1.0),
        ([4, 3, 2, 1], [0, 0, 1, 1], 0.0),
        ([3, 1, 2], [1, 0, 1], 1.0),
        ([0.5, 0.5, 0.5, 0.5], [0, 0, 1, 1], 0.5),
        ([0.5, 0.5, 0.5, 0.5], [1, 1, 0, 0], 0.5),
        ([0.2, 0.9, 0.9, 0.9], [0, 1, 0, 1], 0.75),
    ],
)
def test_auc_golden_values(score, label, area):
    assert auc(torch.tensor(score), torch.tensor(label)) == pytest.approx(area)


@given(st.permutations(range(12)), st.lists(st.integers(0, 1), min_size=12, max_size=12).filter(lambda x: 0 < sum(x) < 12))
def test_auc_is_the_share_of_pairs_in_the_right_order(score, label):
    pairs = [(p, n) for p, a in zip(score, label, strict=True) if a for n, b in zip(score, label, strict=True) if not b]
    assert auc(torch.tensor(score), torch.tensor(label)) == pytest.approx(sum(p > n for p, n in pairs) / len(pairs))


def test_auc_of_a_single_class_is_not_a_number():
    assert auc(torch.tensor([0.1, 0.2]), torch.tensor([1, 1])) != auc(torch.tensor([0.1, 0.2]), torch.tensor([1, 1]))


@pytest.mark.parametrize(
    ("stated", "seen", "error"),
    [([0.9, 0.9], [1.0, 1.0], 0.1), ([0.0, 1.0], [0.0, 1.0], 0.0), ([0.75] * 4, [1, 1, 1, 0], 0.0), ([1.0, 1.0], [0, 0], 1.0)],
)
def test_calibration_golden_values(stated, seen, error):
    assert calibration_error(torch.tensor(stated), torch.tensor(seen)) == pytest.approx(error, abs=1e-6)
