"""Laws that hold for every chip, model and load."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clone_rl.hw_emulator import Chip, Emulator, Precision, Workload
from clone_rl.hw_emulator.chip import OperatingPoint
from clone_rl.hw_emulator.cost import work_latency
from clone_rl.hw_emulator.emulator import HEAD, LAYER, POLICY, PROBE, TERMS

SMALL = Workload(layers=10, hidden_size=256, heads=4, kv_heads=2, ff_size=768)
WINDOWS = dataclasses.replace(SMALL, windows=(0, 40) * 5, context=4096, lora_rank=8)
BILLION = Workload.from_config("llama-3.2-1b", context=2048)
SRAM, LPDDR4 = Chip.load("asic28-sram"), Chip.load("asic28-lpddr4")


def altered(chip, section, **changes):
    return dataclasses.replace(chip, **{section: dataclasses.replace(getattr(chip, section), **changes)})


EMULATORS = [
    Emulator(SRAM, dataclasses.replace(SMALL, lora_rank=4), policy_macs=900),
    Emulator(LPDDR4, BILLION, policy_lut_bytes=4096),
    Emulator(LPDDR4, WINDOWS, policy_macs=900),
    Emulator(
        altered(altered(dataclasses.replace(LPDDR4, lpu=None), "sram", double_buffered=False), "compute", dataflow="os"),
        WINDOWS,
    ),
    Emulator(Chip.load("orin-agx-eager"), BILLION.with_precision("bf16")),
    Emulator(Chip.load("orin-nano"), WINDOWS, policy_macs=900),
]

emulators = st.sampled_from(EMULATORS)
pieces = st.sampled_from([LAYER, LAYER + 1, HEAD, PROBE, POLICY, LAYER + 11, LAYER + 15])
shares = st.floats(0, 1)
rows = st.integers(1, 256)
contexts = st.integers(0, 2048)
temperatures = st.floats(-20, 120)

CLOSE = 1 - 1e-12


def point_of(emulator, share):
    return round(share * emulator.top)


@given(emulators, pieces, rows, contexts, st.booleans(), st.floats(1e6, 2e9), st.floats(1.0, 10.0))
def test_a_faster_clock_never_takes_longer(emulator, piece, rows, context, causal, frequency, factor):
    slow, fast = emulator.points[0].copy(), emulator.points[0].copy()
    slow["frequency_hz"], fast["frequency_hz"] = frequency, frequency * factor
    chip, work = emulator.constants[0], emulator.work[piece]
    slow_s, fast_s = (work_latency(chip, point, work, rows, context, causal) for point in (slow, fast))
    assert fast_s * CLOSE <= slow_s <= fast_s * factor * (1 + 1e-9)


@given(emulators, pieces, shares, rows, contexts, st.booleans(), st.integers(0, 64), st.integers(0, 512), temperatures)
def test_more_rows_or_context_never_take_less_time_or_energy_of_any_kind(
    emulator, piece, share, rows, context, causal, more_rows, more_context, celsius
):
    point = point_of(emulator, share)
    less = emulator.cost(piece, point, context, rows, celsius, causal=causal)
    more = emulator.cost(piece, point, context + more_context, rows + more_rows, celsius, causal=causal)
    for name in ("latency_s", *TERMS):
        assert getattr(more, name) >= getattr(less, name) * CLOSE >= 0, name


@given(emulators, shares, rows, contexts, st.sampled_from(["decode", "prefill"]), temperatures, st.floats(1, 3))
def test_energy_is_the_sum_of_terms_none_of_which_is_negative(emulator, share, rows, context, phase, celsius, slowdown):
    cost = emulator.token(phase, context, rows, point_of(emulator, share), None, celsius, slowdown)
    terms = [getattr(cost, name) for name in TERMS]
    assert min(terms) >= 0
    assert cost.energy_j == pytest.approx(sum(terms), rel=1e-12)
    assert cost.energy_j == pytest.approx(cost.dynamic_j + cost.dram_j + cost.leakage_j, rel=1e-12)
    assert cost.power_w * cost.latency_s == pytest.approx(cost.energy_j)


GROWTH = {
    "layers": st.integers(1, 4),
    "hidden_size": st.sampled_from([4, 64, 300]),
    "ff_size": st.integers(1, 900),
    "vocab_size": st.integers(1, 5000),
    "kv_heads": st.just(2),
    "head_dim": st.integers(1, 32),
    "lora_rank": st.integers(1, 16),
    "adapters": st.integers(1, 3),
    "norms": st.integers(1, 2),
}


@given(
    st.data(),
    st.sampled_from(sorted(GROWTH)),
    st.sampled_from(
        [altered(SRAM, "sram", size_bytes=1 << 28), LPDDR4, dataclasses.replace(LPDDR4, lpu=None), Chip.load("orin-nx")]
    ),
    shares,
    st.sampled_from(["decode", "prefill"]),
    rows,
    contexts,
    st.integers(0, 8),
)
def test_a_larger_model_never_takes_less_time(data, field, chip, share, phase, rows, context, rank):
    less = dataclasses.replace(SMALL, lora_rank=rank)
    more = dataclasses.replace(less, **{field: getattr(less, field) + data.draw(GROWTH[field])})
    small, large = Emulator(chip, less, policy_macs=9), Emulator(chip, more, policy_macs=9)
    point = point_of(small, share)
    cheap, dear = (e.token(phase, context, rows, point).latency_s for e in (small, large))
    assert dear >= cheap * CLOSE


@given(shares, st.sampled_from(["decode", "prefill"]), rows, contexts, st.integers(0, 300), st.integers(0, 300))
def test_a_wider_window_never_takes_less_time(share, phase, rows, context, window, more):
    narrow, wide, full = (
        Emulator(LPDDR4, dataclasses.replace(SMALL, windows=(w,) * 10)) for w in (window + 1, window + 1 + more, 0)
    )
    seconds = [e.token(phase, context, rows, point_of(narrow, share)).latency_s for e in (narrow, wide, full)]
    assert seconds[0] * CLOSE <= seconds[1]
    assert seconds[1] * CLOSE <= seconds[2]


FORMATS = ["int4", "int8", "fp16"]


@given(
    st.sampled_from([LPDDR4, dataclasses.replace(LPDDR4, lpu=None), Chip.load("orin-agx")]),
    st.tuples(*[st.integers(0, 2)] * 4),
    st.integers(0, 3),
    st.sampled_from([0, 32, 64, 128]),
    shares,
    st.sampled_from(["decode", "prefill"]),
    rows,
    contexts,
)
def test_more_bits_never_take_less_time(chip, formats, which, group, share, phase, rows, context):
    names = [FORMATS[f] for f in formats]
    wider = list(names)
    wider[which] = FORMATS[min(2, formats[which] + 1)]
    if which == 2:
        wider[2] = "int8" if names[2] == "int4" else names[2]  # a floating-point activation needs another multiplier
    less, more = (Emulator(chip, SMALL.with_precision(Precision(*given, group=group))) for given in (names, wider))
    point = point_of(less, share)
    assert more.token(phase, context, rows, point).latency_s >= less.token(phase, context, rows, point).latency_s * CLOSE


@given(rows, contexts, shares, st.sampled_from(["decode", "prefill"]))
def test_finer_scales_never_take_less_time(rows, context, share, phase):
    seconds = []
    for group in (0, 512, 64, 16):
        emulator = Emulator(LPDDR4, BILLION.with_precision(Precision("int4", "int8", "int8", "int8", group=group)))
        seconds.append(emulator.token(phase, context, rows, point_of(emulator, share)).latency_s)
    assert all(finer >= coarser * CLOSE for coarser, finer in itertools.pairwise(seconds))


# Voltage.


def with_points(chip, regulator, *voltages, input_v=1.3):
    points = tuple(OperatingPoint(v, 1e8 * (i + 1)) for i, v in enumerate(voltages))
    return dataclasses.replace(altered(chip, "power", regulator=regulator, input_voltage_v=input_v), operating_points=points)


@given(st.floats(0.53, 0.9), st.floats(0.01, 0.3), st.floats(1.2, 2.0), rows, contexts)
def test_dynamic_energy_goes_as_the_square_of_the_voltage_and_behind_an_ldo_as_the_voltage(low, more, input_v, rows, context):
    model = dataclasses.replace(SMALL, lora_rank=4)
    for regulator, exponent in {"ideal": 2, "switched-capacitor": 2, "buck": 2, "ldo": 1}.items():
        emulator = Emulator(with_points(SRAM, regulator, low, low + more, input_v=input_v), model)
        weak, strong = (emulator.layer(context=context, tokens=rows, vf=k) for k in (0, 1))
        for name in ("mac_j", "sram_j", "sfu_j", "clock_j", "lpu_j", "dynamic_j"):
            ratio = getattr(strong, name) / getattr(weak, name)
            assert ratio == pytest.approx(((low + more) / low) ** exponent, rel=1e-9), (regulator, name)


@given(st.floats(0.53, 0.9), st.floats(0.01, 0.3), st.floats(1.2, 2.0))
def test_an_ldo_draws_its_input_voltage_and_other_regulators_have_one_efficiency(low, more, input_v):
    ideal = Emulator(with_points(SRAM, "ideal", low, low + more), SMALL)
    for regulator in ("switched-capacitor", "buck", "ldo"):
        emulator = Emulator(with_points(SRAM, regulator, low, low + more, input_v=input_v), SMALL)
        for vf, voltage in enumerate((low, low + more)):
            gain = input_v / voltage / 0.99 if regulator == "ldo" else 1 / 0.85
            for name in ("dynamic_j", "leakage_j"):
                assert getattr(emulator.layer(vf=vf), name) == pytest.approx(getattr(ideal.layer(vf=vf), name) * gain)


@given(
    st.sampled_from(["ideal", "switched-capacitor", "buck", "ldo"]), st.floats(0.53, 0.9), st.floats(0.01, 0.3), temperatures,
    st.floats(0.1, 50), st.floats(1, 5),
)  # fmt: skip
def test_leakage_grows_with_voltage_temperature_and_time(regulator, low, more, celsius, warmer, slowdown):
    emulator = Emulator(with_points(SRAM, regulator, low, low + more), SMALL)
    assert emulator.points["leakage_w"][1] > emulator.points["leakage_w"][0] > 0
    cold, hot, busy = (emulator.layer(temperature_c=celsius + k, slowdown=s) for k, s in ((0, 1), (warmer, 1), (0, slowdown)))
    assert hot.leakage_j > cold.leakage_j
    assert busy.leakage_j == pytest.approx(cold.leakage_j * slowdown)


# Memory.


@given(
    st.sampled_from([LPDDR4, *map(Chip.load, ("orin-agx", "orin-agx-eager", "orin-nano", "orin-nx"))]),
    st.sampled_from([BILLION.with_precision("int8"), WINDOWS.with_precision("bf16")]),
    st.floats(0.05, 4),
    shares,
    st.sampled_from(["decode", "prefill"]),
    rows,
    contexts,
    st.booleans(),
)
def test_twice_the_bandwidth_never_slows_anything(chip, model, share_of_it, vf, phase, rows, context, buffered):
    bandwidth = chip.dram.bandwidth_bytes_per_s * share_of_it
    if chip is LPDDR4:
        chip = altered(chip, "sram", double_buffered=buffered)
    narrow, wide = (Emulator(altered(chip, "dram", bandwidth_bytes_per_s=b), model) for b in (bandwidth, 2 * bandwidth))
    for piece in (HEAD, PROBE, POLICY, LAYER, LAYER + 1, narrow.kv_fill_row(1), narrow.kv_fill_row(9)):
        before, after = (
            e.cost(piece, point_of(e, vf), context, rows, causal=phase == "prefill").latency_s for e in (narrow, wide)
        )
        assert after <= before * (1 + 1e-12)


# What voltage and frequency are worth.


@pytest.mark.parametrize("model", ["llama-3.2-1b", "llama-3.2-3b", "llama-3.1-8b", "qwen2.5-0.5b", "smollm2-135m", "gpt2"])
@pytest.mark.parametrize("precision", ["int4", "int8"])
def test_behind_a_dram_wall_the_sweep_moves_a_token_s_energy_by_less_than_a_twentieth(model, precision):
    for context in (0, 512, 2048):
        emulator = Emulator(LPDDR4, Workload.from_config(model, precision))
        tokens = [emulator.token(context=context, vf=vf) for vf in range(emulator.top + 1)]
        energy = [token.energy_j for token in tokens]
        assert max(energy) / min(energy) < 1.05
        assert all(token.dram_j > 0.9 * token.energy_j for token in tokens)


def test_with_many_rows_behind_the_same_wall_the_sweep_matters():
    emulator = Emulator(LPDDR4, BILLION)
    prompts = [emulator.token("prefill", tokens=256, vf=vf) for vf in (0, 7)]
    assert prompts[0].latency_s > 3 * prompts[1].latency_s
    assert prompts[1].dynamic_j > 2 * prompts[0].dynamic_j


@pytest.mark.parametrize("tiles", [1, 2, 4])
def test_with_resident_weights_the_sweep_spans_latency_and_crawling_and_racing_both_lose(tiles):
    emulator = Emulator(SRAM.with_tiles(tiles), SMALL)
    tokens = [emulator.token(context=64, vf=vf) for vf in range(emulator.top + 1)]
    assert tokens[0].latency_s / tokens[-1].latency_s >= 2.5
    energy = [token.energy_j for token in tokens]
    best = int(np.argmin(energy))
    assert 0 < best < emulator.top
    assert min(energy[0], energy[-1]) > 1.2 * energy[best]
    assert tokens[0].leakage_j > tokens[0].dynamic_j
    assert tokens[-1].dynamic_j > tokens[best].dynamic_j
