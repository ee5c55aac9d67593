import dataclasses

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from clone_rl.errors import BadFileError, BadValueError
from clone_rl.llm.probe import Probe, auc, calibrated, calibration_error, fit_probe, load_probe

EXITS, TOKENS, WIDTH = 2, 4000, 16
torch.set_num_threads(1)


def planted(seed):
    """States whose log-odds and logarithm of KL are a linear read-out of their direction, different at every exit."""
    generator = torch.Generator().manual_seed(seed)
    read = torch.randn(EXITS, 2, WIDTH, generator=torch.Generator().manual_seed(99)) / WIDTH**0.5
    hidden = torch.randn(EXITS, TOKENS, WIDTH, generator=generator)
    raw = torch.einsum("ltd,lsd->lts", F.rms_norm(hidden, (WIDTH,)), read)
    chance = (raw[..., 0] * 4).sigmoid()
    agree = (torch.rand(EXITS, TOKENS, generator=generator) < chance).float()
    mean = (raw[..., 1] / 2).exp()
    kl = mean * -torch.rand(EXITS, TOKENS, generator=generator).clamp_min(1e-6).log()
    # The length of a state says nothing: the probe reads the normalised one.
    return hidden * torch.rand(EXITS, TOKENS, 1, generator=generator) * 10, agree, kl, chance, mean


def random_probe(seed, exits=3, units=5, width=8):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((exits, units, width), (exits, units), (exits, 2, units), (exits, 2))
    return Probe(*(torch.randn(shape, generator=generator) for shape in shapes))


@pytest.fixture(scope="module")
def raw_probe():
    hidden, agree, kl, _, _ = planted(0)
    return fit_probe(hidden, agree, kl, units=8, steps=200)


@pytest.fixture(scope="module")
def fitted(raw_probe):
    return calibrated(raw_probe, *planted(2)[:3])


@pytest.mark.parametrize("layer", [1, 2])
def test_a_fitted_probe_knows_the_chances_of_agreement_on_other_states(fitted, layer):
    hidden, agree, _, chance, _ = planted(1)
    signal = fitted.signals(hidden[layer - 1], layer)[:, 0]
    assert auc(signal, agree[layer - 1]) > auc(chance[layer - 1], agree[layer - 1]) - 0.02
    assert calibration_error(signal, agree[layer - 1]) < 0.03
    assert (signal - chance[layer - 1]).abs().mean() < 0.06
    assert auc(fitted.signals(hidden[layer - 1], 3 - layer)[:, 0], agree[layer - 1]) < 0.8


@pytest.mark.parametrize("layer", [1, 2])
def test_a_fitted_probe_predicts_the_mean_of_kl(fitted, layer):
    hidden, _, kl, _, mean = planted(1)
    signal = fitted.signals(hidden[layer - 1], layer)[:, 1]
    assert torch.corrcoef(torch.stack([signal.log(), mean[layer - 1].log()]))[0, 1] > 0.95
    assert signal.mean() == pytest.approx(float(kl[layer - 1].mean()), rel=0.06)


def test_fitting_is_deterministic():
    hidden, agree, kl, _, _ = planted(0)
    one, same, other = (fit_probe(hidden, agree, kl, steps=5, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.inner, same.inner)
    assert one.sha256 == same.sha256 != other.sha256
    assert calibrated(one, hidden, agree, kl).sha256 == calibrated(same, hidden, agree, kl).sha256


def test_calibration_undoes_a_probe_that_is_too_sure_and_states_the_wrong_scale(fitted):
    hidden, agree, kl, _, _ = planted(3)
    sure = dataclasses.replace(
        fitted,
        outer=fitted.outer * torch.tensor([3.0, 1.0])[:, None],
        outer_bias=fitted.outer_bias * torch.tensor([3.0, 1.0]) + torch.tensor([1.5, 1.0]),
    )
    again = calibrated(sure, hidden, agree, kl)
    assert calibration_error(sure.all_signals(hidden)[0, :, 0], agree[0]) > 0.05
    for row in range(EXITS):
        before, after = fitted.all_signals(hidden)[row], again.all_signals(hidden)[row]
        assert calibration_error(after[:, 0], agree[row]) < 0.03
        assert torch.allclose(after[:, 0], before[:, 0], atol=0.04)
        assert after[:, 1].mean() == pytest.approx(float(kl[row].mean()), rel=1e-4)


def test_folded_calibration_equals_calibrating_the_outputs(raw_probe):
    """The likelihood's own optimum over slope and offset, found here by brute force on the outputs."""
    hidden, agree, kl, _, _ = planted(2)
    folded = calibrated(raw_probe, hidden, agree, kl)
    raw, other = raw_probe.raw(hidden).double(), planted(4)[0]
    for row in range(EXITS):
        slope, offset = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        for _ in range(50):  # Newton's method by hand
            p = (slope * raw[row, :, 0] + offset).sigmoid()
            x = torch.stack((raw[row, :, 0], torch.ones_like(p)))
            step = torch.linalg.solve((x * p * (1 - p)) @ x.T, x @ (agree[row].double() - p))
            slope, offset = slope + step[0], offset + step[1]
        factor = kl[row].double().mean() / raw[row, :, 1].exp().mean()
        unfolded = raw_probe.raw(other)[row].double()
        found = folded.all_signals(other)[row].double()
        assert torch.allclose(found[:, 0], (slope * unfolded[:, 0] + offset).sigmoid(), atol=2e-3)
        assert torch.allclose(found[:, 1], unfolded[:, 1].exp() * factor, rtol=1e-4)


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_calibration_stands_a_slice_on_which_all_tokens_agree_or_none(raw_probe, label):
    hidden, agree, kl, _, _ = planted(2)
    signal = calibrated(raw_probe, hidden, torch.full_like(agree, label), kl * 0).all_signals(hidden)
    assert signal.isfinite().all()
    assert (signal[..., 0] - label).abs().mean() < 0.05
    assert signal[..., 1].max() < 1e-4


def test_a_probe_that_has_it_backwards_is_silenced_not_inverted(fitted):
    hidden, agree, kl, _, _ = planted(2)
    signal = calibrated(fitted, hidden, 1 - agree, kl).all_signals(hidden)[..., 0]
    assert signal.std(1).max() < 1e-6


@given(st.integers(0, 1000), st.floats(0.1, 1e3))
def test_signals_are_a_probability_and_nats_and_ignore_the_length_of_the_state(seed, scale):
    probe = random_probe(seed)
    hidden = torch.randn(5, 7, 8, generator=torch.Generator().manual_seed(seed))
    for layer in (1, 2, 3):
        signals = probe.signals(hidden, layer)
        assert signals.shape == (5, 7, 2)
        assert ((signals[..., 0] >= 0) & (signals[..., 0] <= 1)).all()
        assert (signals[..., 1] >= 0).all()
        assert torch.allclose(probe.signals(hidden * scale, layer), signals, atol=1e-3, rtol=1e-3)
        assert torch.allclose(probe.signals(hidden[2, 3], layer), signals[2, 3], atol=1e-5, rtol=1e-4)


def test_all_exits_at_once_are_the_exits_one_by_one_and_those_of_a_slow_loop():
    probe = random_probe(7)
    hidden = torch.randn(3, 5000, 8, generator=torch.Generator().manual_seed(8)) * 30
    together = probe.all_signals(hidden)
    assert torch.allclose(together, torch.stack([probe.signals(hidden[e], e + 1) for e in range(3)]), rtol=1e-4, atol=1e-6)
    for e, t in ((0, 0), (1, 2500), (2, 4999)):
        state = hidden[e, t].double()
        state = state / state.square().mean().sqrt()
        units = [
            max(0.0, float(w @ state + b)) ** 2 for w, b in zip(probe.inner[e].double(), probe.inner_bias[e], strict=True)
        ]
        odds, log_kl = (
            float(sum(w * u for w, u in zip(row, units, strict=True)) + b)
            for row, b in zip(probe.outer[e].double(), probe.outer_bias[e], strict=True)
        )
        expected = [torch.tensor(odds).sigmoid(), torch.tensor(min(4.0, max(-14.0, log_kl))).exp()]
        assert together[e, t].tolist() == pytest.approx([float(x) for x in expected], rel=1e-4, abs=1e-6)


def test_sizes_are_those_of_the_weights():
    probe = random_probe(0, exits=3, units=5, width=8)
    assert (probe.exits, probe.dots, probe.width) == (3, 5, 8)


@pytest.mark.parametrize("layer", [0, 4, -1])
def test_an_exit_that_does_not_exist_is_refused(layer):
    with pytest.raises(BadValueError, match=f"exit {layer}"):
        random_probe(0).signals(torch.zeros(2, 8), layer)


def test_states_of_another_model_are_refused():
    with pytest.raises(BadValueError, match="width 9"):
        random_probe(0).signals(torch.zeros(2, 9), 1)
    for shape in ((3, 4, 9), (2, 4, 8)):
        with pytest.raises(BadValueError, match="states of shape"):
            random_probe(0).all_signals(torch.zeros(shape))


@pytest.mark.parametrize("name", ["inner", "inner_bias", "outer", "outer_bias"])
def test_weights_that_do_not_fit_together_or_are_not_finite_are_refused(name):
    probe = random_probe(0)
    tensor = getattr(probe, name)
    with pytest.raises(BadValueError, match="shape"):
        dataclasses.replace(probe, **{name: tensor[:, :-1]})
    with pytest.raises(BadValueError, match="not finite"):
        dataclasses.replace(probe, **{name: tensor * float("nan")})


def test_a_probe_comes_back_from_its_file(fitted, tmp_path):
    fitted.save(tmp_path / "probe.safetensors")
    loaded = load_probe(tmp_path / "probe.safetensors", EXITS, WIDTH)
    assert loaded.sha256 == fitted.sha256
    state = torch.randn(WIDTH)
    assert torch.equal(loaded.signals(state, 1), fitted.signals(state, 1))
    assert [p.name for p in tmp_path.iterdir()] == ["probe.safetensors"]


@pytest.mark.parametrize(("exits", "width"), [(EXITS + 1, WIDTH), (EXITS, 2 * WIDTH)])
def test_the_probe_of_another_model_is_named(fitted, tmp_path, exits, width):
    fitted.save(tmp_path / "probe.safetensors")
    with pytest.raises(BadFileError, match=f"{EXITS} exits of width {WIDTH}, not {exits} of width {width}"):
        load_probe(tmp_path / "probe.safetensors", exits, width)


@pytest.mark.parametrize("content", [None, b"", b"not a probe at all"])
def test_a_file_that_is_no_probe_is_refused(tmp_path, content):
    path = tmp_path / "probe.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadFileError, match="is not an exit probe"):
        load_probe(path)


@pytest.mark.parametrize(
    "tensors",
    [
        {"weight": torch.zeros(3, 2, 8), "bias": torch.zeros(3, 2)},
        {"inner": torch.zeros(3, 5, 8)},
        {"inner": torch.zeros(3, 5), "inner_bias": torch.zeros(1), "outer": torch.zeros(1), "outer_bias": torch.zeros(1)},
    ],
)
def test_a_file_of_other_tensors_is_refused(tmp_path, tensors):
    save_file(tensors, tmp_path / "probe.safetensors")
    with pytest.raises(BadFileError, match="is not an exit probe"):
        load_probe(tmp_path / "probe.safetensors")


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


def test_calibration_error_equals_a_count_bin_by_bin():
    generator = torch.Generator().manual_seed(0)
    stated = torch.rand(400, generator=generator)
    seen = (torch.rand(400, generator=generator) < stated**2).float()
    bins = [[] for _ in range(10)]
    for p, y in zip(stated.tolist(), seen.tolist(), strict=True):
        bins[min(9, int(p * 10))].append((p, y))
    expected = sum(abs(sum(p for p, _ in b) - sum(y for _, y in b)) for b in bins) / 400
    assert calibration_error(stated, seen) == pytest.approx(expected, abs=1e-6)
    assert expected > 0.05
