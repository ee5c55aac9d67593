"""What is not installed is told before anything is compiled, loaded or written."""

import sys
from importlib.util import module_from_spec, spec_from_file_location

import pytest

from clone_rl import bars
from clone_rl.cli import extras

pytest_plugins = ["cli_running"]

PROMPT = ("--prompt", "Once")
NEEDED = [
    ("torch", "llm", ("generate", *PROMPT)),
    ("transformers", "llm", ("generate", *PROMPT, "--controller", "performance")),
    ("tokenizers", "llm", ("record", "--out", "t")),
    ("torch", "llm", ("evaluate", "performance", "--live")),
    ("torch", "train", ("train",)),
    ("stable_baselines3", "train", ("train",)),
    ("tensorboard", "train", ("train",)),
    ("safetensors", "train", ("train",)),
    ("transformers", "llm", ("demo",)),
    ("matplotlib", "plot", ("demo",)),
    ("fastapi", "serve", ("serve",)),
    ("uvicorn", "serve", ("serve",)),
    ("torch", "llm", ("serve",)),
    ("matplotlib", "plot", ("generate", *PROMPT, "--picture", "p.png")),
    ("matplotlib", "plot", ("report", "runs/mine")),
    ("matplotlib", "plot", ("chip", "cost", "--plot", "p.png")),
    ("matplotlib", "plot", ("study", "granularity")),
    ("optuna", "train", ("study", "granularity")),
    ("optuna", "train", ("tune", "pace")),
    ("optuna", "train", ("tune",)),
    ("safetensors", "train", ("evaluate", "pace", "default")),
    ("safetensors", "train", ("study", "unseen", "default")),
    ("safetensors", "export", ("export", "default", "--to", "c")),
    ("onnx", "export", ("export", "default", "--to", "onnx")),
    ("onnxruntime", "export", ("export", "default", "--to", "onnx")),
    ("torch", "llm", ("probe", "--model", "m", "--text", "t")),
    ("torch", "llm", ("pretrain", "--text", "t", "--out", "o")),
]


@pytest.fixture
def without(monkeypatch):
    def block(module):
        for name in [module, *(n for n in sys.modules if n.startswith(f"{module}."))]:
            monkeypatch.setitem(sys.modules, name, None)

    return block


@pytest.mark.parametrize(("module", "extra", "arguments"), NEEDED, ids=[f"{m}: {' '.join(a[:3])}" for m, _, a in NEEDED])
def test_a_command_says_first_what_it_lacks(run_cli, without, snapshot, monkeypatch, module, extra, arguments):
    loaded = []
    monkeypatch.setattr("clone_rl.envs.scenario.Scenario.load", lambda *_, **__: loaded.append(1))  # the first that jobs do
    without(module)
    error = run_cli(*arguments, "--json").error
    assert (error["kind"], loaded) == ("missing_extra", [])
    assert f"needs {module}, which is not installed" in error["message"]
    assert error["hint"] == f"pip install 'clone-rl[{extra}]'"
    assert snapshot() == {}


def test_baselines_alone_need_no_extra(run_cli, without, trace_folder):
    for module in ("torch", "safetensors", "matplotlib", "optuna", "transformers", "onnx", "fastapi", "tensorboard"):
        without(module)
    done = run_cli("evaluate", "performance", "--traces", trace_folder, "--requests", "2", "--oracle-requests", "1")
    assert done.code == 0, done.err


def test_without_tqdm_there_is_no_bar(without, capsys):
    without("tqdm")
    spec = spec_from_file_location("bars_without_tqdm", bars.__file__)
    spec.loader.exec_module(bare := module_from_spec(spec))
    with bare.Bar("abc", desc="x", unit="y", delay=2.0, disable=None) as bar:
        assert list(bar) == ["a", "b", "c"] and bar.n == 3
    other = bare.Bar(total=5, initial=2)
    other.update(2)
    other.set_postfix(loss=1)
    other.close()
    assert (other.n, capsys.readouterr().err) == (4, "")


def test_modules_that_turn_out_to_be_missing_name_their_extra():
    assert extras.missing("zeus.monitor").hint == "pip install 'clone-rl[hardware]'"
    assert extras.missing("unheard_of").hint == "pip install 'clone-rl[all]'"
