"""``clone-rl export``: files, figures, and bad input."""

import itertools
import json

import numpy as np
import pytest

from clone_rl.agents.policy import Policy
from clone_rl.envs.observation import OBSERVATION
from clone_rl.runtime.export.compiler import find_compiler

pytest_plugins = ["cli_running"]

FEW = ("--observations", "1500")
SHARED = {
    "policy", "policy_sha256", "scenario", "format", "files", "bytes", "observations", "agreement", "decision_s",
    "numpy_decision_s", "compiled_decision_s", "machine",
}  # fmt: skip


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("clone_rl.cli.export._SECONDS", 0.01)


@pytest.fixture
def make(here, trace_folder):
    """Write a policy into the current folder."""

    def write(name="mine", heads=(9,), **card):
        rng = np.random.default_rng(5)
        sizes = (len(OBSERVATION), 12, sum(heads))
        layers = tuple(
            (rng.normal(0, 0.7, (out, width)).astype(np.float32), rng.normal(0, 0.1, out).astype(np.float32))
            for width, out in itertools.pairwise(sizes)
        )
        policy = Policy(layers, heads, {"name": name, "scenario": "default", "config": {"traces": trace_folder}, **card})
        policy.save(here / "p.safetensors")
        return policy

    return write


def test_a_graph_is_written_and_compared(run_cli, make, here):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    policy = make()
    found = run_cli("export", "p.safetensors", "--to", "onnx", *FEW, "--json").json
    assert found.keys() >= SHARED
    assert found["files"] == ["mine.onnx"]
    assert found["bytes"] == (here / "mine.onnx").stat().st_size
    assert found["agreement"] >= 0.999
    assert 0 < found["decision_s"] < 1
    onnx.checker.check_model(onnx.load(here / "mine.onnx"))
    assert found["metadata"]["policy_sha256"] == policy.sha256 == found["policy_sha256"]


@pytest.mark.skipif(find_compiler() is None, reason="no C compiler here")
@pytest.mark.parametrize("heads", [(9,), (8, 8, 8, 8, 8, 5)])
@pytest.mark.parametrize("fixed", [(), ("--fixed",)])
def test_a_header_is_written_and_compared(run_cli, make, here, heads, fixed):
    make(heads=heads)
    found = run_cli("export", "p.safetensors", "--to", "c", *fixed, "--out", "mine.h", *FEW, "--json").json
    assert found["files"] == ["mine.h", "mine-golden.c"]
    assert found["fixed"] is bool(fixed)
    assert found["agreement"] > 0.99 if fixed else found["agreement"] == 1.0
    assert 0 < found["decision_s"] < found["numpy_decision_s"]
    assert '#include "mine.h"' in (here / "mine-golden.c").read_text()


def test_without_a_compiler_only_what_needs_none_is_measured(run_cli, make, monkeypatch):
    make()
    monkeypatch.setenv("CC", "no-such-compiler")
    done = run_cli("export", "p.safetensors", "--to", "c", *FEW, "--json")
    assert "no C compiler here" in done.err
    assert (done.json["agreement"], done.json["decision_s"], done.json["compiler"]) == (None, None, None)
    fixed = run_cli("export", "p.safetensors", "--to", "c", "--fixed", *FEW, "--json").json
    assert fixed["agreement"] > 0.99
    assert fixed["decision_s"] is None
    said = run_cli("export", "p.safetensors", "--to", "c", "--out", "again.h", *FEW)
    assert "agreement: not measured" in said.out


def test_a_table_is_written_judged_and_loaded_again(run_cli, make, here, trace_folder):
    policy = make()
    found = run_cli("export", "p.safetensors", "--to", "lut", *FEW, "--json").json
    assert found["files"] == ["mine-lut.safetensors", "mine-lut.json"]
    assert found["agreement"] > 0.85
    assert found["bytes"] == found["candidates"][0]["rom_bytes"]
    assert (
        found["sfu"]["table"]["one_lookup_energy_j"] <= found["sfu"]["table"]["energy_j"] < found["sfu"]["policy"]["energy_j"]
    )
    for split in ("validation", "test"):
        result = found["evaluation"][split]
        ratio = result["table"]["energy_per_token_j"] / result["policy"]["energy_per_token_j"]
        assert result["over_policy"] == pytest.approx(ratio - 1)
        low, high = result["over_policy_ci"]
        assert low <= result["over_policy"] <= high
        assert {"miss_rate", "disagreement", "dnll", "within_constraints"} <= result["table"].keys()
    arguments = ("p.safetensors", "mine-lut.json", "--traces", trace_folder, "--repeats", "4", "--no-oracle")
    judged = run_cli("evaluate", *arguments, "--json").json["summary"]
    assert [row["name"] for row in judged] == ["mine", "mine-lut"]
    assert judged[1]["energy_per_token_j"] == found["evaluation"]["test"]["table"]["energy_per_token_j"]
    assert judged[1]["settings"]["rom_bytes"] == found["bytes"]
    card = json.loads((here / "mine-lut.json").read_text())
    assert card["source_sha256"] == policy.sha256
    assert card["command"].startswith("clone-rl export p.safetensors --to lut")


def test_people_read_size_time_agreement_and_regret(run_cli, make):
    make()
    out = run_cli("export", "p.safetensors", "--to", "lut", *FEW).out
    for words in (
        "bytes; a decision takes",
        "agrees with the policy on",
        "cycles",
        "test: energy over the policy's",
        "| table",
    ):
        assert words in out


@pytest.mark.parametrize(
    ("arguments", "kind", "message", "hint"),
    [
        (("defualt", "--to", "c"), "unknown_name", "unknown policy 'defualt'", "did you mean 'default'?"),
        (("default", "--to", "onx"), "unknown_name", "unknown format 'onx'", "did you mean 'onnx'?"),
        (("default",), "bad_value", "--to", "see clone-rl export --help"),
        (("none.safetensors", "--to", "c"), "bad_policy", "no policy file none.safetensors", "NAME.json beside it"),
        (("default", "--to", "c", "--out", "none/x.h"), "bad_file", "no such folder: none", "create it first"),
        (("default", "--to", "c", "--out", "x.c"), "bad_value", "out x.c", "end it in .h"),
        (("default", "--to", "lut", "--out", "x.json"), "bad_value", "out x.json", "end it in .safetensors"),
        (("default", "--to", "onnx", "--fixed"), "bad_value", "--fixed with --to onnx", "it is for --to c"),
        (("default", "--to", "c", "--rom-bytes", "9"), "bad_value", "--rom-bytes with --to c", "it is for --to lut"),
        (("default", "--to", "lut", "--rom-bytes", "0"), "bad_value", "rom bytes is 0", "at least 1"),
        (("default", "--to", "c", "--observations", "0"), "bad_value", "observations is 0", "at least 1"),
        (("default", "--to", "c", "--scenario", "hott"), "unknown_name", "unknown scenario 'hott'", "did you mean 'hot'?"),
        (("default", "--to", "c", "--seed", "-1"), "bad_value", "-1", "0 or more"),
    ],
)
def test_bad_input_is_named(run_cli, snapshot, arguments, kind, message, hint):
    error = run_cli("export", *arguments, "--json").error
    assert error["kind"] == kind
    assert message in error["message"]
    assert hint in error["hint"]
    assert snapshot() == {}


@pytest.mark.parametrize(("to", "file"), [("c", "mine.h"), ("c", "mine-golden.c"), ("lut", "mine-lut.json")])
def test_nothing_is_overwritten(run_cli, make, here, snapshot, to, file):
    make()
    (here / file).write_text("kept")
    before = snapshot()
    error = run_cli("export", "p.safetensors", "--to", to, *FEW, "--json").error
    assert error["message"] == f"{file} exists"
    assert snapshot() == before


def test_a_tampered_policy_is_refused(run_cli, make, here, snapshot):
    make()
    data = bytearray((here / "p.safetensors").read_bytes())
    data[-1] ^= 1
    (here / "p.safetensors").write_bytes(data)
    before = snapshot()
    error = run_cli("export", "p.safetensors", "--to", "c", *FEW, "--json").error
    assert error["kind"] == "bad_policy"
    assert "does not match the hash" in error["message"]
    assert snapshot() == before


def test_a_card_cannot_name_a_file_elsewhere(run_cli, make, here):
    make(name="../../up/and*/away")
    found = run_cli("export", "p.safetensors", "--to", "c", *FEW, "--json").json
    assert found["files"] == ["up_and_away.h", "up_and_away-golden.c"]
    assert (here / "up_and_away.h").exists()


def test_a_card_without_a_scenario_needs_one(run_cli, make, trace_folder):
    make(scenario="", config=None)
    error = run_cli("export", "p.safetensors", "--to", "c", *FEW, "--json").error
    assert error["hint"] == "give --scenario"
    more = ("--scenario", "hot", "--traces", trace_folder)
    assert run_cli("export", "p.safetensors", "--to", "c", *more, *FEW, "--json").json["scenario"] == "hot"


def test_several_choices_at_once_are_no_table(run_cli, make, snapshot):
    make(heads=(8, 8, 8, 8, 8, 5))
    before = snapshot()
    error = run_cli("export", "p.safetensors", "--to", "lut", *FEW, "--json").error
    assert "decides per token" in error["message"]
    assert "onnx or c" in error["hint"]
    assert snapshot() == before


def test_an_altered_table_is_refused_by_evaluate(run_cli, make, here, trace_folder):
    make()
    run_cli("export", "p.safetensors", "--to", "lut", *FEW)
    data = bytearray((here / "mine-lut.safetensors").read_bytes())
    data[-1] ^= 1
    (here / "mine-lut.safetensors").write_bytes(data)
    error = run_cli("evaluate", "mine-lut.safetensors", "--traces", trace_folder, "--json").error
    assert "does not match the hash" in error["message"]
