"""Keys and values of the layers that an exit skips: filled at once, owed, or never there."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clone_rl.envs.control import load_control
from clone_rl.envs.kernel import need_s
from clone_rl.envs.rows import Rows
from clone_rl.envs.state import ENERGY_TERMS
from clone_rl.hw_emulator.emulator import LAYER
from clone_rl.hw_emulator.ledger import KV

TOP, EXIT = 7, 8
CHIPS = ["asic28-sram", "asic28-lpddr4", "orin-agx"]


def begin(trace_folder, kv, seed=0, count=1, **changes):
    control = load_control("layer", traces=trace_folder, kv=kv, slack_low=2.0, **changes)
    rows = Rows(control.world, count, 1)
    rows.reset(seed + np.arange(count), np.zeros(count, np.int64))
    return rows


def play(rows, *actions):
    for action in actions:
        rows.step(np.full((rows.count, 1), action))
    return rows.state[0].copy()


def prefilled(rows):
    play(rows, *[TOP] * 10)
    return rows


@pytest.mark.parametrize("changes", [{}, {"decision_delay": 1}, {"chip": "asic28-lpddr4"}], ids=str)
@pytest.mark.parametrize("kv", ["exact", "skip"])
def test_without_exits_all_ways_are_the_same_bit_for_bit(trace_folder, kv, changes):
    one, other = (begin(trace_folder, way, 3, 8, **changes) for way in ("propagate", kv))
    rng = np.random.default_rng(0)
    while not one.state["done"].all():
        actions = rng.integers(0, TOP + 1, (8, 1))
        a, b = one.step(actions), other.step(actions)
        assert a.observation.tobytes() == b.observation.tobytes()
        assert a.reward.tobytes() == b.reward.tobytes()
        assert one.state.tobytes() == other.state.tobytes()


@pytest.mark.parametrize("kv", ["exact", "skip"])
def test_an_exit_charges_the_head_and_nothing_else(trace_folder, kv):
    rows = prefilled(begin(trace_folder, kv, probe=False, policy_macs=0))
    before, after = play(rows, 4, 4), play(rows, EXIT)
    assert {name for name in ENERGY_TERMS if after[name] != before[name]} == {"head_j"}
    assert rows.missing[0].tolist() == [0, 0] + [1] * 8


def test_what_is_missing_is_counted_by_layer_and_paid_by_who_owes_it(trace_folder):
    rows = {kv: prefilled(begin(trace_folder, kv, seed=1)) for kv in KV}
    for r in rows.values():
        play(r, 4, EXIT, 4, 4, 4, EXIT, 4, 4)
    missing = {kv: r.missing[0].tolist() for kv, r in rows.items()}
    assert missing["propagate"] == [0]
    assert missing["exact"] == [0, 0, 0] + [2] * 7  # the second token brought layers 1 and 2 up to date
    assert missing["skip"] == [0, 1, 1] + [2] * 7
    for r in rows.values():
        play(r, *[4] * 8)
    kept = {kv: r.missing[0].tolist() for kv, r in rows.items()}
    assert kept["exact"] == [0] * 10
    assert kept["skip"] == missing["skip"]


@given(st.integers(1, 9), st.integers(1, 4), st.sampled_from(CHIPS))
def test_a_full_token_after_exits_takes_at_least_what_it_takes_alone_and_less_than_one_by_one(
    trace_folder, depth, exits, chip
):
    """Weights and cache are read once for all the tokens that a layer owes."""
    quiet = {"probe": False, "policy_macs": 0, "chip": chip, "switching": "ideal"}
    traces = load_control("layer", traces=trace_folder).traces
    long = int(np.flatnonzero((np.diff(traces.offset) > 6) & (traces.split == 0))[0])
    took = {}
    for kv, leaves in (("exact", True), ("propagate", False)):
        rows = begin(trace_folder, kv, **quiet)
        rows.reset(np.zeros(1, np.int64), np.zeros(1, np.int64), np.array([long]))
        rows.state["busy"], rows.state["slowdown"] = 0, 1.0
        leave = rows.world.prices.at.shape[1]
        play(rows, *[leave - 1] * 10)
        for _ in range(exits):
            play(rows, *([leave - 1] * depth + [leave] if leaves else [leave - 1] * 10))
        rows.state["die_c"] = rows.state["package_c"] = 25.0
        rows.state["growth"] = 1.0
        before = rows.state[0].copy()
        after = play(rows, *[leave - 1] * 10)
        took[kv] = (after["energy_j"] - before["energy_j"], after["clock_s"] - before["clock_s"], after, before)
    (joules, seconds, after, before), (alone_j, alone_s, alone_after, alone_before) = took["exact"], took["propagate"]
    assert alone_j < joules < (exits + 1) * alone_j
    assert alone_s < seconds <= (exits + 1) * alone_s * (1 + 1e-9)
    assert after["kv_fill_j"] > before["kv_fill_j"]
    # What is not owed is booked as what a token takes anyway, on a die that gets a little warmer.
    assert after["layer_j"] - before["layer_j"] == pytest.approx(alone_after["layer_j"] - alone_before["layer_j"], rel=1e-3)


def test_attention_to_fewer_positions_costs_less(trace_folder):
    rows = {kv: prefilled(begin(trace_folder, kv, seed=1, probe=False)) for kv in KV}
    spent = {}
    for kv, r in rows.items():
        play(r, 4, EXIT, 4, EXIT)
        before = r.state[0]["layer_j"].item()
        spent[kv] = play(r, *[4] * 10)["layer_j"] - before
    assert spent["skip"] < 0.9999 * spent["propagate"]
    assert spent["exact"] == pytest.approx(spent["propagate"], rel=1e-3)


def test_the_time_to_finish_counts_the_tokens_that_are_owed_layer_by_layer(trace_folder):
    rows = prefilled(begin(trace_folder, "exact", seed=1, probe=False, policy_macs=0))
    emulator = load_control("layer", traces=trace_folder).emulator
    s = play(rows, 4, 4, EXIT, 4, 4, 4, EXIT, 4)
    cached = s["prompt"] + s["token"] - 1
    rows_of = [1, 1, 1] + [3] * 7
    rows_of[2] = 1  # the token that left after layer 3 had paid for it
    expected = sum(
        emulator.cost(LAYER + j, 2, cached - (n - 1), n, causal=True).latency_s
        if n > 1
        else emulator.cost(LAYER + j, 2, cached + 1).latency_s
        for j, n in enumerate(rows_of)
        if j >= s["layer"]
    )
    stall, _ = emulator.switch(int(s["point"]), 2)
    slowdown = s["slowdown"] if s["busy"] else 1.0
    head = rows.world.prices.head_s[0, 2]
    assert need_s(rows.state[0], rows.missing[0], rows.world, 2) == pytest.approx(
        (expected + head) * slowdown + stall, rel=1e-12
    )


def test_what_is_still_owed_at_the_end_is_never_computed(trace_folder):
    rows = prefilled(begin(trace_folder, "exact", count=16))
    while not rows.state["done"].all():
        play(rows, 5, EXIT)
    assert (rows.state["kv_fill_j"] == 0).all()
    assert (rows.missing[:, 1] == rows.state["tokens"] - 1).all()


@pytest.mark.parametrize("kv", ["exact", "skip"])
def test_the_next_request_misses_nothing(trace_folder, kv):
    rows = prefilled(begin(trace_folder, kv, count=16))
    while not (rows.state["episode"] > 0).all():
        for action in (5, EXIT):
            lacked = rows.missing.any(1)
            out = rows.step(np.full((16, 1), action), autoreset=True)
            for i in np.flatnonzero(out.terminated):
                assert lacked[i]
                assert not rows.missing[i].any()
