import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from clone_rl.envs.trace import load_traces
from clone_rl.envs.trace import trace_folder as trace_folder_of
from clone_rl.evaluation.trace_summary import summarise

pytest_plugins = ["cli_running"]


def test_show_tells_every_figure_as_json(run_cli, here, trace_folder):
    found = run_cli("trace", "show", trace_folder, "--split", "test", "--json").json
    traces = load_traces(trace_folder)
    expected = summarise(traces, "test")
    assert found["layers"] == 10
    assert [row["layer"] for row in found["exits"]] == list(range(1, 10))
    for row, wanted in zip(found["exits"], expected["exits"], strict=True):
        assert row == pytest.approx(wanted, nan_ok=True)
    assert found["exits_by_kind"].keys() == expected["exits_by_kind"].keys() == set(traces.kinds)
    assert {"agreement", "kl", "dnll", "kl_predicted", "auc", "ece", "margin", "entropy"} < set(found["exits"][0])
    assert found["requests"]["story"]["train"] == 0
    assert found["card"]["layers"] == 10
    assert "keys" not in found["card"]


def test_show_prints_tables_for_people(run_cli, here):
    done = run_cli("trace", "show", "default")
    assert done.code == 0
    traces = load_traces("default")
    for words in ("model default", traces.card["model_sha256"][:12], "K/V:", "signal AUC", "arithmetic", "10 (full)", "nats"):
        assert words in done.out
    assert f"{traces.agree[:, 0].mean(dtype=np.float64):.4f}" in done.out
    assert f"{traces.offset[-1]:,} tokens" in done.out
    assert max(map(len, done.out.splitlines())) <= 127


def test_show_draws(run_cli, here, trace_folder):
    assert run_cli("trace", "show", trace_folder, "--plot", "p.png").out.splitlines()[-1] == "picture: p.png"
    assert (here / "p.png").read_bytes().startswith(b"\x89PNG")


def test_show_does_without_torch(here, trace_folder):
    code = (
        "import sys; sys.argv = ['clone-rl']; from clone_rl.cli.main import main\n"
        f"main(['trace', 'show', {trace_folder!r}])\nprint('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (("defualt",), "unknown_name", "unknown trace set 'defualt'"),
        (("none/at/all",), "unknown_name", "unknown trace set"),
        (("empty",), "bad_file", "no card.json"),
        (("copy", "--split", "tests"), "unknown_name", "unknown split 'tests'"),
        (("copy", "--plot", "taken.png"), "bad_file", "taken.png exists"),
        (("copy", "--plot", "p.pdf"), "bad_value", "plot p.pdf"),
        ((), "bad_value", "TRACES"),
    ],
)
def test_what_cannot_be_shown_is_named(run_cli, snapshot, here, trace_folder, arguments, kind, message):
    shutil.copytree(trace_folder, here / "copy")
    (here / "empty").mkdir()
    (here / "taken.png").write_text("precious")
    before = snapshot()
    assert "Traceback" not in run_cli("trace", "show", *arguments).err
    failed = run_cli("trace", "show", *arguments, "--json")
    assert failed.code == 2
    assert failed.error["kind"] == kind
    assert message in failed.error["message"]
    assert snapshot() == before


def test_validate_says_that_the_shipped_set_holds(run_cli, here):
    found = run_cli("trace", "validate", "default", "--json").json
    assert found["traces"] == "default"
    assert all(check["pass"] is True for check in found["checks"])
    assert {check["name"] for check in found["checks"]} >= {"provenance", "columns", "finite", "splits", "content"}
    done = run_cli("trace", "validate", "default")
    assert done.code == 0
    assert done.out.splitlines()[-1] == f"{len(found['checks'])} of {len(found['checks'])} checks hold"


def test_validate_names_what_fails_where_and_what_to_do(run_cli, snapshot, here):
    copy = shutil.copytree(trace_folder_of("default"), here / "copy")
    agree = np.load(copy / "agree.npy")
    agree[7, 2] = 0.5
    np.save(copy / "agree.npy", agree)
    before = snapshot()
    done = run_cli("trace", "validate", "copy")
    assert done.code == 1
    assert "FAILED" in done.out
    assert "agree: request 0, token 7 of it, after layer 3: agree is 0.5\n  record the set again" in done.out
    assert max(map(len, done.out.splitlines())) <= 127
    judged = run_cli("trace", "validate", "copy", "--json")
    assert judged.code == 1
    checks = {check["name"]: check for check in json.loads(judged.out)["checks"]}
    assert {name for name, check in checks.items() if not check["pass"]} == {"agree", "content"}
    assert checks["agree"].keys() == {"name", "wants", "pass", "found", "fix"}
    assert snapshot() == before


def test_validate_shows_what_it_could_not_look_at(run_cli, here):
    copy = shutil.copytree(trace_folder_of("default"), here / "copy")
    (copy / "kl.npy").unlink()
    done = run_cli("trace", "validate", "copy")
    assert done.code == 1
    assert "columns: there is no kl.npy" in done.out
    assert "not looked at" in done.out
    assert done.out.splitlines()[-1] == "3 of 20 checks hold"


@pytest.mark.parametrize(
    ("traces", "kind", "message"),
    [("defualt", "unknown_name", "unknown trace set"), ("empty", "bad_file", "no card.json")],
)
def test_what_cannot_be_validated_is_named(run_cli, here, traces, kind, message):
    (here / "empty").mkdir()
    failed = run_cli("trace", "validate", traces, "--json")
    assert failed.code == 2
    assert failed.error["kind"] == kind
    assert message in failed.error["message"]


def test_validate_does_without_torch(here):
    code = (
        "import sys; sys.argv = ['clone-rl']; from clone_rl.cli.main import main\n"
        "main(['trace', 'validate', 'default'])\nprint('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
