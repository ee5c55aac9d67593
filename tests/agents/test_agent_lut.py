"""Look-up table controllers: what they choose, what they cost, and their files."""

import hashlib
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load, save

from clone_rl.agents.lut import GridRule, LutPolicy, TreeRule, is_lut_path, quantised
from clone_rl.agents.rollout import run_requests
from clone_rl.envs.observation import OBSERVATION
from clone_rl.errors import PolicyFileError
from clone_rl.hw_emulator import Emulator, load_chip
from clone_rl.hw_emulator.emulator import POLICY

AGREE, POINT = OBSERVATION.index("agree"), OBSERVATION.index("point")


def arrays(*parts):
    return [np.array(part, np.int64) for part in parts]


def tree(**changes):
    """Exit where agreement reaches level 200; else the point by the point in force."""
    parts = dict(zip(TreeRule._fields, arrays([AGREE, POINT], [200, 128], [1, -1 - 2], [-1 - 8, -1 - 5]), strict=True))
    return TreeRule(**{**parts, **{name: np.array(value) for name, value in changes.items()}})


def grid(**changes):
    parts = dict(zip(GridRule._fields, arrays([AGREE, POINT], [2, 3], [100, 200, 128], [2, 5, 3, 6, 8, 8]), strict=True))
    return GridRule(**{**parts, **{name: np.array(value) for name, value in changes.items()}})


def drawn(count=2000, seed=0):
    observations = np.random.default_rng(seed).uniform(-1.1, 1.1, (count, len(OBSERVATION))).astype(np.float32)
    observations[:3] = [[-1.0], [1.0], [0.0]]
    return observations


@pytest.fixture
def path(tmp_path):
    target = tmp_path / "mine.safetensors"
    LutPolicy(tree(), 9, {"source": "default"}, "mine").save(target)
    return target


def test_a_tree_follows_its_comparisons():
    observations = drawn()
    levels = quantised(observations)
    expected = np.where(levels[:, AGREE] >= 200, 8, np.where(levels[:, POINT] >= 128, 5, 2))
    assert (LutPolicy(tree(), 9).act(observations)[:, 0] == expected).all()
    assert len(np.unique(expected)) == 3


def test_a_grid_looks_up_the_cell_of_its_bins():
    observations = drawn()
    levels = quantised(observations)
    row = (levels[:, AGREE] >= 100).astype(int) + (levels[:, AGREE] >= 200)
    expected = np.array([[2, 5], [3, 6], [8, 8]])[row, (levels[:, POINT] >= 128).astype(int)]
    assert (LutPolicy(grid(), 9).act(observations)[:, 0] == expected).all()
    assert len(np.unique(expected)) == 5


def test_levels_are_bytes_over_the_bounds_of_an_observation():
    assert quantised(np.array([-2, -1, 0, 1 / 255, 1, 2], np.float32)).tolist() == [0, 0, 128, 128, 255, 255]


def test_size_and_price():
    small, flat = LutPolicy(tree(), 9), LutPolicy(grid(), 9)
    assert (small.rom_bytes, small.steps, small.macs, small.scalars) == (12, 2, 32, ["agree", "point"])
    assert (flat.rom_bytes, flat.steps, flat.macs) == (3 + 3, 1, 16)  # six actions of 4 bits, three edges
    chain = TreeRule(*arrays([0, 1, 2, 3], [9, 9, 9, 9], [1, 2, 3, -1], [-1, -1, -1, -2]))
    assert LutPolicy(chain, 9).steps == 4


@given(st.integers(1, 18), st.sampled_from(["asic28-sram", "asic28-lpddr4"]), st.integers(0, 7))
def test_a_table_is_charged_no_less_than_the_emulator_says_a_look_up_costs(kibibits, chip, point):
    from conftest import SHAPE

    size, loaded = 2**kibibits, load_chip(chip)
    charged = Emulator(loaded, SHAPE, policy_macs=LutPolicy(grid(), 9).macs).cost(POLICY, point)
    declared = Emulator(loaded, SHAPE, policy_lut_bytes=size).cost(POLICY, point)
    assert charged.energy_j >= declared.energy_j
    assert charged.latency_s >= declared.latency_s


@pytest.mark.parametrize("table", [tree(), grid()], ids=["tree", "grid"])
def test_a_loaded_table_acts_as_the_saved_one(tmp_path, table):
    made = LutPolicy(table, 9, {"scenario": "default"}, "mine", probes=False)
    made.save(tmp_path / "t.safetensors")
    for name in ("t.safetensors", "t.json"):
        assert is_lut_path(str(tmp_path / name))
        loaded = LutPolicy.load(tmp_path / name)
        assert (loaded.act(drawn()) == made.act(drawn())).all()
        assert (loaded.name, loaded.probes, loaded.heads, loaded.sha256) == ("mine", False, (9,), made.sha256)
        assert loaded.card["scenario"] == "default"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["t.json", "t.safetensors"]


@pytest.mark.parametrize("table", [tree(), grid()], ids=["tree", "grid"])
def test_a_table_controls_requests(control, table):
    documents = control.traces.documents("test")
    # Exits before the first layer of a token are not taken, so that every request ends.
    figures = run_requests(control, LutPolicy(table, 9), "test", documents, 0)
    assert (figures["document"] == documents).all()
    assert (figures["depth"] < figures["tokens"] * control.traces.layers).any()
    assert (figures["policy_j"] > 0).all()


@pytest.mark.parametrize(
    "table",
    [
        pytest.param(tree(left=[0, -3]), id="a loop"),
        pytest.param(tree(left=[2, -3]), id="a node that is not there"),
        pytest.param(tree(right=[-10, -6]), id="an action that is not there"),
        pytest.param(tree(scalar=[16, 8]), id="a scalar that is not there"),
        pytest.param(tree(scalar=[-1, 8]), id="a negative scalar"),
        pytest.param(tree(threshold=[200]), id="a threshold short"),
        pytest.param(TreeRule(*arrays([], [], [], [])), id="no node"),
        pytest.param(grid(table=[2, 5, 3, 6, 8]), id="a cell short"),
        pytest.param(grid(table=[2, 5, 3, 6, 8, 9]), id="an action too high"),
        pytest.param(grid(table=[2, 5, 3, 6, 8, -1]), id="a negative action"),
        pytest.param(grid(ends=[3, 2]), id="ends that descend"),
        pytest.param(grid(ends=[2, 4]), id="ends beyond the edges"),
        pytest.param(grid(scalars=[2]), id="a scalar short"),
    ],
)
def test_tables_whose_parts_do_not_fit_are_refused(table):
    with pytest.raises(PolicyFileError, match="do not fit together"):
        LutPolicy(table, 9)


def rewrite(path, tensors=None, **changes):
    """Alter a file and its card; the hash is made to fit."""
    if tensors is not None:
        path.write_bytes(save(tensors))
    card = json.loads(path.with_suffix(".json").read_text()) | {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    path.with_suffix(".json").write_text(json.dumps({k: v for k, v in (card | changes).items() if v is not None}))


def test_an_altered_or_truncated_table_is_refused(path):
    data = path.read_bytes()
    for changed in (data[:-1], data[:-1] + bytes([data[-1] ^ 1]), b""):
        path.write_bytes(changed)
        with pytest.raises(PolicyFileError, match="hash"):
            LutPolicy.load(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 1}, {"shape": "pickle"}, {"shape": None}, {"shape": "grid"}, {"actions": "x"}, {"actions": 3},
        {"actions": None}, {"observation": ["phase"]}, {"observation": None}, {"observation": [*OBSERVATION, "mood"]},
        {"observation": [*OBSERVATION, "limits"]},
        {"probes": None},
    ],
)  # fmt: skip
def test_a_card_that_does_not_fit_is_refused(path, changes):
    rewrite(path, **changes)
    with pytest.raises(PolicyFileError):
        LutPolicy.load(path)


def test_a_table_with_the_right_hash_and_the_wrong_content_is_refused(path):
    tensors = load(path.read_bytes())
    for wrong in (
        {**tensors, "left": tensors["left"] * 0},
        {"left": tensors["left"]},
        {**tensors, "left": tensors["left"][:, None]},
    ):
        rewrite(path, wrong)
        with pytest.raises(PolicyFileError):
            LutPolicy.load(path)
    path.write_bytes(b"\x80\x04N.")
    rewrite(path)
    with pytest.raises(PolicyFileError, match="is not a look-up table"):
        LutPolicy.load(path)


def test_a_missing_file_is_named(path):
    content = path.read_bytes()
    path.unlink()
    with pytest.raises(PolicyFileError, match=r"mine\.safetensors"):
        LutPolicy.load(path)
    path.write_bytes(content)
    path.with_suffix(".json").unlink()
    with pytest.raises(PolicyFileError, match=r"mine\.json"):
        LutPolicy.load(path)


def test_what_is_no_table_is_not_taken_for_one(tmp_path):
    (tmp_path / "a.json").write_text('{"format": 1}')
    (tmp_path / "b.json").write_text("{")
    (tmp_path / "c.json").write_text("[]")
    assert not any(is_lut_path(str(tmp_path / name)) for name in ("a.json", "b.json", "c.json", "none.json", "default"))
