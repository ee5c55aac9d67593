"""Exports decide as their policy does: ONNX, C in double precision and in integers, look-up tables."""

import itertools
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clone_rl.agents.lut import LEVELS, LutPolicy, quantised
from clone_rl.agents.policy import Policy
from clone_rl.envs.observation import OBSERVATION
from clone_rl.errors import BadValueError, CloneRLError, MissingExtraError, PolicyFileError
from clone_rl.runtime.export.agreement import agreement, margins
from clone_rl.runtime.export.c import (
    c_header,
    constant_bytes,
    fixed_c_header,
    golden_program,
    golden_vectors,
    plain_name,
    rule_logits,
)
from clone_rl.runtime.export.compiler import FLAGS, CompiledPolicy, find_compiler
from clone_rl.runtime.export.fixed import ONE_BITS, FixedPolicy, inputs_of
from clone_rl.runtime.export.lut import tabulate
from clone_rl.runtime.export.observations import collect, own_control
from clone_rl.runtime.export.onnx import OPSET, OnnxPolicy, onnx_model
from clone_rl.runtime.export.tables import fit_grid, fit_tree

WIDTH = len(OBSERVATION)
TOKEN = (8, 8, 8, 8, 8, 5)

needs_c = pytest.mark.skipif(find_compiler() is None, reason="no C compiler here")


def make_policy(heads=(9,), seed=0, hidden=(24, 16), scale=0.5, **kwargs):
    rng = np.random.default_rng(seed)
    layers = tuple(
        (rng.normal(0, scale, (out, width)).astype(np.float32), rng.normal(0, 0.1, out).astype(np.float32))
        for width, out in itertools.pairwise((WIDTH, *hidden, sum(heads)))
    )
    return Policy(layers, heads, {"scenario": "default", "limits": {"miss": 0.01}}, **kwargs)


def drawn(count=4000, seed=1):
    return np.random.default_rng(seed).uniform(-1, 1, (count, WIDTH)).astype(np.float32)


def compiled(folder, program, header, *flags):
    """Compile a golden program with its header as a user would, and run it."""
    (folder / "mine.h").write_text(header)
    (folder / "golden.c").write_text(program)
    command = [find_compiler(), *FLAGS, *flags, "golden.c", "-o", "golden", "-lm"]
    built = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert (built.returncode, built.stderr) == (0, "")
    return subprocess.run([folder / "golden"], capture_output=True, text=True, check=False)


# Four ways of deciding


@pytest.mark.slow
def test_numpy_the_compiled_rule_onnx_and_torch_decide_alike_on_many_observations():
    """They add in another order and precision, so that only logits that are all but equal may be told apart otherwise."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxruntime")
    policy = Policy.load("default")
    observations = np.concatenate([collect(own_control(policy), policy, "test", 100_000, 5), drawn(100_000)])
    modules = []
    for weight, bias in policy.layers:
        linear = torch.nn.Linear(weight.shape[1], weight.shape[0])
        linear.weight.data, linear.bias.data = torch.from_numpy(weight.copy()), torch.from_numpy(bias.copy())
        modules += [linear, torch.nn.Tanh()]
    with torch.no_grad():
        by_torch = torch.nn.Sequential(*modules[:-1])(torch.from_numpy(observations)).argmax(1).numpy()
    decisions = {
        "numpy": policy.logits(observations).argmax(1),
        "torch": by_torch,
        "onnx": OnnxPolicy(onnx_model(policy)).act(observations)[:, 0],
    }
    rule, margin = policy.act(observations)[:, 0], margins(policy, observations)[:, 0]
    assert len(np.unique(rule[:100_000])) >= 6
    rounding = 1e-5  # of float32 logits of this size
    for name, chosen in decisions.items():
        differs = chosen != rule
        assert not (differs & (margin > rounding)).any(), name
        assert differs.sum() <= (margin <= rounding).sum(), name
    assert (margin <= rounding).sum() < 20


# What exports are compared on


def test_observations_are_of_the_policys_rollouts_and_of_disturbed_ones(control):
    policy = make_policy()
    seen = collect(control, policy, "train", 3000, 7)
    assert seen.shape == (3000, WIDTH)
    assert seen.dtype == np.float32
    assert (collect(control, policy, "train", 3000, 7) == seen).all()
    assert (collect(control, policy, "train", 3000, 8) != seen).any()
    calm = collect(control, policy, "train", 3000, 7, deviate=0.0)
    assert (calm[::2] == seen[::2]).all()
    assert (calm[1::2] != seen[1::2]).any()


def test_the_scenario_is_the_one_that_the_card_names(trace_folder):
    card = {"scenario": "hot", "config": {"traces": trace_folder}}
    found = own_control(Policy(make_policy().layers, (9,), card))
    assert (found.scenario.name, found.scenario.traces) == ("hot", trace_folder)
    with pytest.raises(BadValueError, match="does not say in which scenario"):
        own_control(Policy(make_policy().layers, (9,), {"config": 3}))
    with pytest.raises(PolicyFileError, match="was made for 6 operating points and asic28-sram has 8"):
        own_control(Policy(make_policy((7,)).layers, (7,), card))


def test_agreement_counts_what_differs_and_how_clear_the_choice_was():
    policy, observations = make_policy((3, 2)), drawn(1000)
    actions = policy.act(observations)
    assert agreement(policy, observations, actions) == {
        "observations": 1000, "agreement": 1.0, "agreement_own": 1.0, "differing": 0, "widest_margin": None
    }  # fmt: skip
    actions[3, 0] = (actions[3, 0] + 1) % 3
    actions[4] = [(actions[4, 0] + 1) % 3, 1 - actions[4, 1]]
    found = agreement(policy, observations, actions)
    assert (found["differing"], found["agreement"], found["agreement_own"]) == (2, 0.998, 0.998)
    logits = np.sort(rule_logits(policy, observations)[:, :3], 1)
    assert found["widest_margin"] >= (logits[:, 2] - logits[:, 1])[3:5].max() > 0
    assert np.isinf(margins(make_policy((1, 4)), observations)[:, 0]).all()


@pytest.mark.parametrize("hidden", [(), (12,), (24, 16), (8, 8, 8)])
def test_the_rules_logits_are_those_of_the_network(hidden):
    policy = make_policy(hidden=hidden)
    np.testing.assert_allclose(rule_logits(policy, drawn(50)), policy.logits(drawn(50)), rtol=1e-4, atol=1e-5)


# ONNX


@pytest.mark.parametrize("heads", [(9,), TOKEN])
def test_a_graph_has_the_policys_logits_and_choices(heads):
    onnx = pytest.importorskip("onnx")
    policy, observations = make_policy(heads), drawn()
    content = onnx_model(policy)
    model = onnx.load_from_string(content)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", OPSET)] == [("", 20)]
    (given_in,) = model.graph.input
    assert (given_in.name, given_in.type.tensor_type.elem_type) == ("observation", onnx.TensorProto.FLOAT)
    assert [d.dim_param or d.dim_value for d in given_in.type.tensor_type.shape.dim] == ["N", WIDTH]
    assert [o.name for o in model.graph.output] == ["logits", "action"]
    run = OnnxPolicy(content)
    np.testing.assert_allclose(run.logits(observations), policy.logits(observations), rtol=1e-4, atol=1e-5)
    differs = run.act(observations) != policy.act(observations)
    assert differs.shape == (len(observations), len(heads))
    assert not (differs & (margins(policy, observations) > 1e-5)).any()
    assert run.act(observations[:1]).shape == (1, len(heads))
    assert onnx_model(make_policy(heads)) == content


def test_a_graph_says_where_it_comes_from():
    onnx = pytest.importorskip("onnx")
    policy = Policy.load("default")
    said = {p.key: p.value for p in onnx.load_from_string(onnx_model(policy)).metadata_props}
    assert said["policy_sha256"] == policy.card["sha256"]
    assert (said["scenario"], said["chip"]) == ("default", "asic28-sram")
    assert json.loads(said["observation"]) == list(OBSERVATION)
    assert json.loads(said["heads"]) == [9]


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_missing_package_is_named_with_its_extra(monkeypatch, package):
    pytest.importorskip("onnx")
    content = onnx_model(make_policy())
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=r"clone-rl\[export\]"):
        OnnxPolicy(content) if package == "onnxruntime" else onnx_model(make_policy())


# C


@needs_c
@pytest.mark.parametrize(("heads", "hidden"), [((9,), (24, 16)), ((9,), (12,)), (TOKEN, (24, 16)), ((9,), ())])
@pytest.mark.parametrize("fixed", [False, True], ids=["double", "integers"])
def test_a_header_gives_the_packages_decisions_and_logits_to_the_last_bit(tmp_path, heads, hidden, fixed):
    policy, observations = make_policy(heads, hidden=hidden), drawn(300)
    integers = FixedPolicy(policy) if fixed else None
    header = fixed_c_header(policy, integers) if integers else c_header(policy)
    done = compiled(tmp_path, golden_program(policy, integers, "mine.h", observations), header)
    assert (done.returncode, done.stdout) == (0, "300 of 300 decisions equal, logits of 300 to the last bit\n")


@needs_c
def test_a_wrong_decision_fails_the_golden_program(tmp_path):
    policy, other, observations = make_policy(), make_policy(seed=3), drawn(300)
    done = compiled(tmp_path, golden_program(policy, None, "mine.h", observations), c_header(other))
    assert done.returncode == 1
    same = int((policy.act(observations) == other.act(observations)).sum())
    assert done.stdout == f"{same} of 300 decisions equal, logits of 0 to the last bit\n"


@needs_c
@pytest.mark.parametrize("heads", [(9,), TOKEN])
def test_a_loaded_header_decides_as_its_policy(heads):
    policy, observations, compiler = make_policy(heads), drawn(20_000), find_compiler()
    double = CompiledPolicy(c_header(policy), len(heads), "float", compiler)
    assert (double.act(observations) == policy.act(observations)).all()
    integers, inputs = FixedPolicy(policy), inputs_of(observations)
    inputs[:4] = [[-(2**15)], [2**15 - 1], [0], [2**ONE_BITS]]
    fixed = CompiledPolicy(fixed_c_header(policy, integers), len(heads), "int16_t", compiler)
    assert (fixed.act(inputs) == integers.act(inputs)).all()


@needs_c
def test_the_header_of_integers_needs_no_library_and_cannot_overflow(tmp_path):
    # Large weights use the sums up to the last bit.
    policy = make_policy(scale=3.0, seed=2)
    integers = FixedPolicy(policy)
    header = fixed_c_header(policy, integers)
    (tmp_path / "mine.h").write_text(header)
    (tmp_path / "use.c").write_text(
        '#include "mine.h"\nint use(const int16_t *x);\nint use(const int16_t *x) { return clone_rl_decide(x); }\n'
    )
    command = [find_compiler(), *FLAGS, "-c", "use.c"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).stderr == b""
    assert "math.h" not in header
    if shutil.which("nm"):
        needed = subprocess.run(["nm", "-u", tmp_path / "use.o"], capture_output=True, text=True, check=True).stdout
        assert needed.strip() == ""
    signs = np.sign(policy.layers[0][0])  # inputs that push a sum of the first layer to its end
    extremes = np.concatenate([signs, -signs, np.sign(drawn(60))]).astype(np.float32)
    program = golden_program(policy, integers, "mine.h", extremes)
    sanitised = subprocess.run(
        [find_compiler(), "-fsanitize=signed-integer-overflow", "-x", "c", "-", "-o", tmp_path / "empty"],
        input="int main(void) { return 0; }\n", capture_output=True, text=True, check=False,
    )  # fmt: skip
    flags = ["-fsanitize=signed-integer-overflow", "-fno-sanitize-recover=all"] if sanitised.returncode == 0 else []
    done = compiled(tmp_path, program, header, *flags)
    assert (done.returncode, done.stderr) == (0, "")


@needs_c
def test_c_reads_floats_as_the_package_does(tmp_path):
    values = np.array(
        [-2, -1, -0.5, -3.0517578e-05, -3.0e-05, 0, 3.0517578e-05, 9e-05, 0.7, 1, 1.5, np.nan, np.inf], np.float32
    )
    values = np.concatenate([values, drawn(1)[0]])[:WIDTH]
    policy = make_policy()
    listed = ", ".join("NAN" if np.isnan(v) else "INFINITY" if np.isinf(v) else f"{float(v).hex()}f" for v in values)
    program = (
        '#include "mine.h"\n#include <math.h>\n#include <stdio.h>\nint main(void)\n{\n'
        f"    static const float x[] = {{{listed}}};\n    int16_t out[CLONE_RL_INPUTS];\n    clone_rl_quantise(x, out);\n"
        '    for (int i = 0; i < CLONE_RL_INPUTS; i++)\n        printf("%d ", out[i]);\n'
        "    return clone_rl_decide(out) < 0;\n}\n"
    )
    done = compiled(tmp_path, program, fixed_c_header(policy, FixedPolicy(policy)))
    assert done.returncode == 0
    assert [int(v) for v in done.stdout.split()] == inputs_of(values[None])[0].tolist()


@needs_c
@pytest.mark.parametrize("name", ["*/ int x; /*", "a\nb", "??/", "\\"])
def test_names_and_cards_cannot_reach_the_code(tmp_path, name):
    policy = make_policy(name=name)
    policy.card["scenario"] = policy.card["chip"] = name
    done = compiled(tmp_path, golden_program(policy, None, "mine.h", drawn(5)), c_header(policy))
    assert done.returncode == 0


@given(st.text())
def test_a_plain_name_is_a_file_in_this_folder(text):
    assert all(c.isascii() and (c.isalnum() or c in "-_") for c in plain_name(text))
    assert plain_name(text)


def test_a_compiler_that_fails_is_reported():
    if not (false := shutil.which("false")):
        pytest.skip("no program that always fails")
    with pytest.raises(CloneRLError, match="does not compile"):
        CompiledPolicy(c_header(make_policy()), 1, "float", false)


def test_the_compiler_is_the_one_of_cc(monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler")
    assert find_compiler() is None


def test_golden_vectors_show_every_action():
    actions = np.repeat([0, 1, 2], [900, 95, 5])[:, None]
    chosen = golden_vectors(actions, 60)
    assert np.bincount(actions[chosen, 0]).tolist() == [20, 20, 5]
    assert len(np.unique(chosen)) == len(chosen)
    many = np.arange(1000)[:, None]
    assert len(golden_vectors(many, 60)) == 60


# Integers


def test_integers_decide_as_the_network_where_it_is_not_undecided():
    policy, observations = make_policy(), drawn(50_000)
    integers = FixedPolicy(policy)
    differs = integers.act(inputs_of(observations)) != policy.act(observations)
    assert 0 < differs.mean() < 2e-3
    assert margins(policy, observations)[differs].max() < 0.01
    scale = 2.0 ** -(integers.layers[-1].shift + ONE_BITS)
    np.testing.assert_allclose(integers.sums(inputs_of(observations)) * scale, rule_logits(policy, observations), atol=0.01)


@given(st.integers(0, 2**32 - 1), st.floats(0.01, 8.0))
def test_no_sum_of_integers_can_overflow(seed, scale):
    layers = FixedPolicy(make_policy(seed=seed, scale=scale)).layers
    for layer in layers:
        assert np.abs(layer.weight).max() < 2**15
        assert (np.abs(layer.weight).sum(0) * 2**ONE_BITS + np.abs(layer.bias)).max() < 2**31


def test_weights_that_no_integer_of_16_bits_can_hold_are_refused():
    with pytest.raises(BadValueError, match="too large for 16 bits"):
        FixedPolicy(make_policy(scale=1e6))


def test_constants_are_counted_in_bytes():
    policy = make_policy()
    macs, outputs = policy.macs, 24 + 16 + 9
    assert constant_bytes(policy, None) == 4 * policy.parameters
    assert constant_bytes(policy, FixedPolicy(policy)) == 2 * macs + 4 * outputs + 2 * 257


# Look-up tables


def rule_of_levels(levels):
    """Something that a small table can hold exactly, on multiples of a grid's places."""
    return np.where(levels[:, 2] >= 160, 8, np.where(levels[:, 8] >= 64, 5, 2))


@pytest.mark.parametrize("kind", ["tree", "grid"])
def test_a_table_learns_what_a_table_can_hold(kind):
    levels = np.random.default_rng(0).integers(0, LEVELS + 1, (20_000, WIDTH)).astype(np.uint8)
    actions = rule_of_levels(levels)
    made = fit_tree(levels, actions, 9, 2) if kind == "tree" else fit_grid(levels, actions, 9, 6, 2, rule_of_levels)
    table = LutPolicy(made, 9)
    assert table.scalars == ["agree", "point"]
    fresh = (np.random.default_rng(1).integers(0, LEVELS + 1, (5000, WIDTH)) / (LEVELS / 2) - 1).astype(np.float32)
    assert (table.act(fresh)[:, 0] == rule_of_levels(quantised(fresh))).mean() > 0.999


def test_tables_keep_to_their_size_and_a_constant_is_one_too():
    levels = np.random.default_rng(0).integers(0, LEVELS + 1, (5000, WIDTH)).astype(np.uint8)
    noise = np.random.default_rng(1).integers(0, 9, 5000)
    assert len(fit_tree(levels, noise, 9, 20).scalar) == 20
    grid = fit_grid(levels, noise, 9, 50, 3, rule_of_levels)
    assert len(grid.table) <= 50
    assert len(grid.scalars) <= 3
    constant = np.full(5000, 4)
    for made in (fit_tree(levels, constant, 9, 20), fit_grid(levels, constant, 9, 50, 3, rule_of_levels)):
        assert (LutPolicy(made, 9).act(drawn(50)) == 4).all()


def test_cells_that_were_never_seen_do_what_the_policy_does_there():
    levels = np.random.default_rng(0).integers(0, LEVELS + 1, (20_000, WIDTH)).astype(np.uint8)
    seen = levels[(levels[:, 2] < 160) | (levels[:, 8] < 64)]
    grid = fit_grid(seen, rule_of_levels(seen), 9, 4, 2, lambda at: np.full(len(at), 7))
    observation = np.zeros((1, WIDTH), np.float32)
    observation[0, [2, 8]] = 0.9
    assert LutPolicy(grid, 9).act(observation)[0, 0] == 7


def test_a_policy_is_tabulated_in_its_scenario(control):
    policy = make_policy(seed=4)
    found = tabulate(policy, control, observations=4000)
    assert {candidate.table.shape for candidate in found} == {"tree", "grid"}
    assert [candidate.rank for candidate in found] == sorted(candidate.rank for candidate in found)
    best = found[0].table
    assert (best.card["source_sha256"], best.card["scenario"]) == (policy.sha256, "default")
    assert (best.probes, best.signals) == (policy.probes, policy.signals)
    seen = collect(control, policy, "test", 2000, 9)
    usual = np.bincount(policy.act(seen)[:, 0]).max() / len(seen)
    assert (best.act(seen) == policy.act(seen)).mean() > max(0.9, usual)
    sizes = sorted(candidate.table.rom_bytes for candidate in found)
    again = tabulate(policy, control, rom_bytes=sizes[2], observations=4000)
    assert [c.table.sha256 for c in again] == [c.table.sha256 for c in found if c.table.rom_bytes <= sizes[2]]
    with pytest.raises(BadValueError, match="the smallest table takes"):
        tabulate(policy, control, rom_bytes=sizes[0] - 1, observations=4000)


def test_a_policy_of_token_control_is_not_tabulated(control):
    with pytest.raises(BadValueError, match="decides per token"):
        tabulate(make_policy(TOKEN), control)
