import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clone_rl.envs.control import load_control
from clone_rl.envs.rows import Rows
from clone_rl.errors import BadValueError, UnknownNameError
from clone_rl.hw_emulator import Emulator, Workload, load_chip
from clone_rl.hw_emulator.emulator import LAYER, POLICY, PROBE, TERMS, LayerCost
from clone_rl.hw_emulator.ledger import KINDS, KV, Event, Ledger

PROMPT = 5
DEPTHS = (1, 2, 3, 3)
"""Layers of three that the tokens after the first run."""


def decoded(kv, depths=DEPTHS, layers=3, prompt=PROMPT, point=None):
    """The ledger of a request whose tokens leave at these depths."""
    ledger = Ledger(layers, kv)
    ledger.start(prompt)
    for depth in (layers, *depths):
        for layer in range(depth):
            ledger.layer(layer, point)
        if depth < layers:
            ledger.leave(depth, point)
        ledger.head(point)
    return ledger


def shapes(ledger):
    """Kind and shape of each event after the first token: (layer, rows, context, skipped)."""
    assert [event.kind for event in ledger.events[:4]] == ["PREFILL"] * 3 + ["HEAD"]
    kept = [event for event in ledger.events[4:] if event.kind not in ("EMBED", "HEAD")]
    return [(event.kind, event.layer, event.rows, event.context, event.skipped) for event in kept]


def test_propagation_fills_the_caches_at_once():
    assert shapes(decoded("propagate")) == [
        ("LAYER", 0, 1, 6, 0),
        ("KV_FILL", 1, 1, 6, 2),
        ("LAYER", 0, 1, 7, 0),
        ("LAYER", 1, 1, 7, 0),
        ("KV_FILL", 2, 1, 7, 1),
        ("LAYER", 0, 1, 8, 0),
        ("LAYER", 1, 1, 8, 0),
        ("LAYER", 2, 1, 8, 0),
        ("LAYER", 0, 1, 9, 0),
        ("LAYER", 1, 1, 9, 0),
        ("LAYER", 2, 1, 9, 0),
    ]


def test_exact_values_are_owed_until_the_layer_runs():
    ledger = decoded("exact")
    assert shapes(ledger) == [
        ("LAYER", 0, 1, 6, 0),
        ("LAYER", 0, 1, 7, 0),
        ("CATCHUP", 1, 2, 5, 0),  # the first response token and the second, after a prompt of five
        ("LAYER", 0, 1, 8, 0),
        ("LAYER", 1, 1, 8, 0),
        ("CATCHUP", 2, 3, 5, 0),
        ("LAYER", 0, 1, 9, 0),
        ("LAYER", 1, 1, 9, 0),
        ("LAYER", 2, 1, 9, 0),
    ]
    assert ledger.missing == [0, 0, 0]


def test_what_is_skipped_is_never_seen():
    ledger = decoded("skip")
    assert shapes(ledger) == [
        ("LAYER", 0, 1, 6, 0),
        ("LAYER", 0, 1, 7, 0),
        ("LAYER", 1, 1, 6, 0),
        ("LAYER", 0, 1, 8, 0),
        ("LAYER", 1, 1, 7, 0),
        ("LAYER", 2, 1, 6, 0),
        ("LAYER", 0, 1, 9, 0),
        ("LAYER", 1, 1, 8, 0),
        ("LAYER", 2, 1, 7, 0),
    ]
    assert ledger.missing == [0, 1, 2]


@pytest.mark.parametrize("kv", KV)
def test_every_token_is_embedded_and_emitted_once(kv):
    ledger = decoded(kv)
    counts = ledger.counts()
    assert (counts["PREFILL"], counts["EMBED"], counts["HEAD"]) == (3, 4, 5)
    assert [event.rows for event in ledger.events if event.kind == "PREFILL"] == [PROMPT] * 3
    assert set(counts) <= set(KINDS)
    assert ledger.rows()[0] == {
        "kind": "PREFILL",
        "point": None,
        "layer": 0,
        "rows": 5,
        "context": 0,
        "skipped": 0,
        "previous": None,
    }


@given(
    layers=st.integers(1, 6),
    prompt=st.integers(1, 9),
    depths=st.lists(st.integers(1, 6), max_size=20),
    kv=st.sampled_from(KV),
)
def test_no_token_and_no_layer_is_lost(layers, prompt, depths, kv):
    depths = [min(depth, layers) for depth in depths]
    ledger = decoded(kv, depths, layers, prompt)
    ran = [event for event in ledger.events if event.kind in ("LAYER", "CATCHUP")]
    filled = sum(event.skipped for event in ledger.events if event.kind == "KV_FILL")
    assert sum(event.rows for event in ran) + filled + sum(ledger.missing) == len(depths) * layers
    assert sum(event.rows - 1 for event in ran) + filled + sum(ledger.missing) == sum(layers - depth for depth in depths)
    for layer in range(layers):
        length, runs = prompt, [event for event in ran if event.layer == layer]
        for event in runs:
            if kv == "skip":
                assert event.context == length + 1  # the cache holds just what ran
            elif event.kind == "CATCHUP":
                assert event.context >= length
                assert event.rows > 1
            length += event.rows
        assert length + (ledger.missing[layer] if kv != "propagate" else 0) <= prompt + len(depths)


def close(found, expected):
    for name in ("latency_s", *TERMS):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-12), name


SHAPE = Workload(layers=10, hidden_size=256, heads=4, kv_heads=2, ff_size=768)
WINDOWS = Workload(layers=4, hidden_size=128, heads=4, kv_heads=2, ff_size=256, windows=(0, 8, 8, 0))


@pytest.mark.parametrize("chip", ["asic28-sram", "asic28-lpddr4", "orin-agx"])
@pytest.mark.parametrize("shape", [SHAPE, WINDOWS], ids=["full", "windows"])
@pytest.mark.parametrize("kv", KV)
def test_full_depth_costs_what_the_emulator_says(chip, shape, kv):
    emulator = Emulator(load_chip(chip), shape)
    ledger = decoded(kv, [shape.layers] * 12, shape.layers, 20, point=2)
    tokens = [emulator.token("decode", 20 + number, vf=2) for number in range(1, 13)]
    close(ledger.total(emulator), LayerCost.total([emulator.token("prefill", tokens=20, vf=2), *tokens]))


@pytest.mark.parametrize("depth", [1, 4, 9])
def test_a_fixed_depth_costs_what_the_emulator_says(emulator, depth):
    ledger = decoded("propagate", [depth] * 7, 10, 20, point=1)
    tokens = [emulator.token("decode", 20 + number, vf=1, depth=depth) for number in range(1, 8)]
    expected = LayerCost.total([emulator.token("prefill", tokens=20, vf=1), *tokens])
    close(ledger.total(emulator), expected)
    warm = LayerCost.total(
        [emulator.token("prefill", tokens=20, vf=1, temperature_c=70.0)]
        + [emulator.token("decode", 20 + n, vf=1, depth=depth, temperature_c=70.0) for n in range(1, 8)]
    )
    close(ledger.total(emulator, 70.0), warm)


def test_no_point_is_the_top_one(emulator):
    close(decoded("exact", [3, 9], 10).total(emulator), decoded("exact", [3, 9], 10, point=emulator.top).total(emulator))


def test_catching_up_costs_a_short_prompt(emulator):
    event = Event("CATCHUP", 1, layer=4, rows=3, context=20)
    close(event.cost(emulator), emulator.layer(4, "prefill", context=20, tokens=3, vf=1))
    apart = LayerCost.total(emulator.layer(4, context=n, vf=1) for n in (21, 22, 23))
    assert event.cost(emulator).energy_j < apart.energy_j  # weights and cache are read once
    assert event.cost(emulator).mac_j == pytest.approx(apart.mac_j)


def test_deciding_costs_probe_and_controller():
    emulator = Emulator(load_chip("asic28-sram"), SHAPE, policy_macs=5000)
    ledger = Ledger(10)
    ledger.start(1)
    ledger.probe(2)
    ledger.policy(3)
    cost = ledger.cost(emulator)
    close(cost["PROBE"], emulator.cost(PROBE, 2))
    close(cost["POLICY"], emulator.cost(POLICY, 3))
    close(ledger.total(emulator), emulator.cost(PROBE, 2) + emulator.cost(POLICY, 3))


def test_switching_costs_a_stall_and_energy(emulator):
    ledger = Ledger(10)
    ledger.start(1)
    ledger.switch(0, 4)
    ledger.switch(None, emulator.top)  # None is the top point: nothing changes
    stall_s, energy = emulator.switch(0, 4)
    assert stall_s > 0
    assert ledger.total(emulator).latency_s == pytest.approx(stall_s)
    assert ledger.total(emulator).energy_j == pytest.approx(energy)


@pytest.mark.parametrize("kv", KV)
@pytest.mark.parametrize("chip", ["asic28-sram", "asic28-lpddr4"])
def test_the_environment_charges_the_same(trace_folder, kv, chip):
    """Random actions on a quiet chip whose leakage does not grow with its temperature."""
    control = load_control("layer", traces=trace_folder, kv=kv, chip=chip, slack_low=2.0)
    world, emulator = control.world, control.emulator
    world.prices.chip["leakage_per_kelvin"] = emulator.constants["leakage_per_kelvin"] = 0.0
    world.rules["slowdown_low"] = world.rules["slowdown_high"] = 1.0
    rng, layers, leaves = np.random.default_rng(5), emulator.workload.layers, len(emulator.points)
    for episode in range(6):
        rows = Rows(world, 1)
        rows.reset(np.array([1]), np.array([episode]))
        state, ledger = rows.state[0], Ledger(layers, kv)
        ledger.start(int(state["prompt"]))
        while not state["done"]:
            token, layer, point = (int(state[name]) for name in ("token", "layer", "point"))
            may_leave = token > 0 and layer > 0
            action = leaves if may_leave and rng.random() < 0.2 else int(rng.integers(leaves))
            rows.step(np.array([[action]]))
            now = int(state["point"])
            if may_leave and world.rules["probe"][0]:
                ledger.probe(point)
            if world.rules["policy"][0]:
                ledger.policy(point)
            if now != point:
                ledger.switch(point, now)
            if action == leaves:
                ledger.leave(layer, now)
            else:
                ledger.layer(layer, now)
            if state["token"] > token:
                ledger.head(now)
        total = ledger.total(emulator)
        assert total.energy_j == pytest.approx(float(state["energy_j"] - state["idle_j"]), rel=1e-9)
        assert total.latency_s + float(emulator.constants[0]["wake_s"]) == pytest.approx(float(state["last_s"]), rel=1e-9)
        owed = rows.missing[0].tolist()
        assert ledger.missing == (owed if kv != "propagate" else [0] * layers)
        assert (sum(owed) > 0) == (kv != "propagate")


def test_a_request_starts_anew():
    ledger = decoded("exact", (1, 1))
    assert ledger.missing == [0, 2, 2]
    ledger.start(3)
    assert ledger.events == []
    assert ledger.missing == [0, 0, 0]


def test_bad_input_is_named(emulator):
    with pytest.raises(UnknownNameError, match="did you mean 'exact'"):
        Ledger(3, "exat")
    with pytest.raises(BadValueError, match="a prompt of 0 tokens"):
        Ledger(3).start(0)
    with pytest.raises(BadValueError, match=r"the ledger is of 3 layers and .* has 10"):
        decoded("skip").total(emulator)


def test_the_pieces_of_a_token_are_those_of_the_emulator(emulator):
    """A layer's row of work is its index, a fill's is the number of layers that it fills."""
    assert emulator.kv_fill_row(3) == LAYER + 10 + 3
    event = Event("KV_FILL", 1, layer=7, context=9, skipped=3)
    close(event.cost(emulator), emulator.cost(emulator.kv_fill_row(3), 1, 9))
