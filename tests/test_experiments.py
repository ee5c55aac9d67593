"""Scripts behind figures of the documentation."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parent.parent / "experiments"


def loaded(name, monkeypatch):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def variants(monkeypatch, tmp_path):
    module = loaded("training_variants", monkeypatch)
    monkeypatch.setattr(module, "EVALUATION_SEEDS", 1)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["training_variants", *arguments, "--out", str(tmp_path)])
        assert module.main() == 0
        return json.loads((tmp_path / "results.json").read_text())

    return run


@pytest.mark.slow
def test_a_variant_is_trained_judged_and_not_trained_again(variants, capsys):
    found = variants("token", "--steps", "100")
    (key,) = found
    assert key == "default token 100 0"
    assert found[key]["variant"]["config"] == {"env_id": "clone_rl/TokenControl-v0"}
    assert found[key]["energy_per_token_j"] > 0
    assert "decisions per token" in capsys.readouterr().out
    assert variants("token", "--steps", "100") == found
    assert capsys.readouterr().out == ""


def test_unknown_variants_are_named(variants, capsys):
    with pytest.raises(SystemExit):
        variants("wider")
    assert "no variant wider" in capsys.readouterr().err


@pytest.mark.slow
def test_policies_with_and_without_memory_clone_one_teacher_and_are_judged_alike(monkeypatch, tmp_path):
    pytest.importorskip("sb3_contrib")
    module, out = loaded("recurrent", monkeypatch), tmp_path / "recurrent.json"
    monkeypatch.setattr(module, "_CLONE_STEPS", 24)
    monkeypatch.setattr(module, "_CLONE_EPOCHS", 2)
    monkeypatch.setattr(sys, "argv", ["recurrent", "--steps", "0", "--out", str(out)])
    assert module.main() == 0
    rows = {row["name"]: row for row in json.loads(out.read_text())}
    assert list(rows) == ["pace", "default", "feedforward", "recurrent"]
    assert rows["default"]["cost"] < rows["pace"]["cost"]
    assert all(0.0 < rows[name]["cloned"] < 1.0 for name in ("feedforward", "recurrent"))


def test_streams_that_were_not_learned_from_are_judged_by_what_they_spend(monkeypatch, tmp_path):
    module, out = loaded("error_budget", monkeypatch), tmp_path / "error_budget.json"
    monkeypatch.setattr(module, "LEANS", (0.0,))
    monkeypatch.setattr(module, "SHARES", (1.0,))
    options = ["--scenario", "default", "--seeds", "1", "--requests", "40", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["error_budget", *options])
    assert module.main() == 0
    still, leaning = json.loads(out.read_text())
    assert (still["earned"], still["lean"], leaning["earned"], leaning["lean"]) == (module.EARNED, 0.0, 1.0, module.LEAN)
    assert leaning["spent"] > still["spent"]
    assert leaning["over_pace"] < still["over_pace"] < 0.0
    assert all(0.0 <= row["held"] <= 1.0 and max(row["spent"]) <= max(row["spent_most"]) for row in (still, leaning))
