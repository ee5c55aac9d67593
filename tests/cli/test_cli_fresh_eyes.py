"""What a newcomer ran into."""

import json

import pytest

from clone_rl.cli.main import main
from clone_rl.errors import BadValueError
from clone_rl.llm.prompt_file import read_prompts
from clone_rl.llm.sampling import Sampling


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["evaluate", "performance", "--js"], "--js"),
        (["evaluate", "performance", "--seed", "-1"], "-1"),
        (["generate", "--prompt", "hi", "--seed", "99999999999999999999999"], "99999999999999999999999"),
        (["generate", "--prompt", ""], "the prompt is empty"),
        (["generate", "--prompt", "hi", "--picture", "r.foo"], "r.foo"),
        (["generate", "--prompt", "hi", "--temperature", "inf"], "inf"),
        (["train", "--seed", "99999999999999999999999"], "99999999999999999999999"),
    ],
)
def test_is_one_sentence_and_exit_code_two(arguments, named, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert named in captured.err
    assert "Traceback" not in captured.err
    assert list(tmp_path.iterdir()) == []


def test_a_prompt_line_may_name_its_split(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": "hi", "split": s}) for s in ("train", "validation")))
    assert [p.split for p in read_prompts(path)] == ["train", "validation"]


def test_a_record_of_an_unknown_split_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.jsonl").write_text(json.dumps({"prompt": "hi", "split": "tset"}))
    assert main(["record", "--prompt-file", "mine.jsonl", "--out", "traces"]) == 2
    assert "did you mean 'test'?" in capsys.readouterr().err
    assert not (tmp_path / "traces").exists()


def test_a_temperature_near_zero_is_greedy():
    import torch

    logits = torch.tensor([0.0, 3.0, 2.9])
    assert Sampling(temperature=1e-300).pick(logits, torch.Generator().manual_seed(0)) == 1
    with pytest.raises(BadValueError, match="temperature"):
        Sampling(temperature=float("inf"))
