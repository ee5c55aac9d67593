"""Scripts behind figures of the documentation."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "experiments" / "training_variants.py"


@pytest.fixture
def variants(monkeypatch, tmp_path):
    spec = importlib.util.spec_from_file_location("training_variants", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "training_variants", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "EVALUATION_SEEDS", 1)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments, "--out", str(tmp_path)])
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
