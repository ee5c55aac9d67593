import json

import numpy as np
import pytest

from clone_rl.envs.trace import SPLITS, load_traces
from clone_rl.llm import record as recording
from clone_rl.llm.corpus import held_out
from clone_rl.llm.model import load_model

pytest_plugins = ["cli_running"]

PROMPTS = [{"prompt": "2 + 2 =", "answer": " 4."}, {"prompt": "Once", "split": "train"}, {"prompt": "Twice", "kind": "story"}]
SENTENCE = "The cat number {} went to the market and bought {} apples for the old fox by the river. "


@pytest.fixture
def prompts(here):
    (here / "prompts.jsonl").write_text("\n".join(map(json.dumps, PROMPTS)))


@pytest.fixture
def text(here):
    (here / "text").mkdir()
    for number in range(60):
        (here / "text" / f"{number:02}.md").write_text("".join(SENTENCE.format(number, n) for n in range(4)))
    return here / "text"


def columns(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.npy")}


def test_records_of_text_are_windows_of_every_split(run_cli, here, text):
    done = run_cli("record", "--text", "text", "--out", "t", "--windows", "24", "--max-new-tokens", "12", "--json")
    traces = load_traces(str(here / "t"))
    assert (done.json["requests"], done.json["new"]) == (24, 24)
    assert traces.kinds == ["text"]
    assert not traces.sampled.any()
    assert (traces.prompt_tokens == 33).all()
    assert set(np.diff(traces.offset)) <= set(range(8, 13))
    assert sum(traces.card["requests"]["text"].values()) == 24
    assert all(traces.card["requests"]["text"][split] for split in SPLITS)
    assert {path.name for path in here.iterdir()} == {"text", "t"}


def test_held_out_text_and_a_split_of_ones_own(run_cli, here, text):
    for number in range(60, 200):
        (text / f"{number}.md").write_text(SENTENCE.format(number, 1) * 3)
    few = ("--text", "text", "--max-new-tokens", "8", "--prompt-tokens", "8", "--split", "validation", "--windows", "99")
    kept = [path for path in text.iterdir() if held_out(path.read_text().strip())]
    traces = run_cli("record", "--out", "t", "--held-out", *few, "--json").json["card"]["requests"]["text"]
    assert 0 < len(kept) < 20
    assert traces["validation"] >= len(kept)
    assert traces["train"] == traces["test"] == 0


def test_modes_of_prompts(run_cli, here, prompts):
    few = ("--prompts", "prompts.jsonl", "--max-new-tokens", "3")
    run_cli("record", "--out", "auto", *few)
    run_cli("record", "--out", "free", *few, "--mode", "free-running", "--temperature", "0")
    auto, free = load_traces(str(here / "auto")), load_traces(str(here / "free"))
    assert (auto.sampled.tolist(), free.sampled.tolist()) == ([0, 1, 1], [1, 1, 1])
    assert auto.split.tolist() == [2, 0, 2]
    assert auto.kinds == ["story", "user"]
    assert (auto.card["mode"], free.card["mode"]) == ("auto", "free-running")
    assert free.card["sampling"] == {"temperature": 0.0, "top_k": 40}
    failed = run_cli("record", "--out", "forced", *few, "--mode", "teacher-forced", "--json")
    assert "'Once' has no answer" in failed.error["message"]
    assert not (here / "forced").exists()


def test_an_interrupted_recording_says_how_to_go_on_and_does(run_cli, here, prompts, monkeypatch):
    few = ("--prompt-file", "prompts.jsonl", "--max-new-tokens", "3")
    assert run_cli("record", "--out", "whole", *few).code == 0
    measure, done = recording.measure, []

    def stop(lm, document):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(document)
        return measure(lm, document)

    with monkeypatch.context() as patch:
        patch.setattr(recording, "measure", stop)
        stopped = run_cli("record", "--out", "t", *few, "--json")
    assert stopped.code == 130
    assert stopped.error["kind"] == "interrupted"
    assert "t.partial" in stopped.error["message"]
    assert "repeat the command" in stopped.error["hint"]
    assert not (here / "t").exists()
    other = run_cli("record", "--out", "t", *few, "--temperature", "0.1", "--json")
    assert "another sampling" in other.error["message"]
    assert run_cli("record", "--out", "t", *few).code == 0
    assert columns(here / "t") == columns(here / "whole")
    assert {path.name for path in here.iterdir()} == {"prompts.jsonl", "whole", "t"}


def test_appended_records_keep_where_they_come_from(run_cli, here, prompts):
    few = ("--out", "t", "--max-new-tokens", "3", "--json")
    run_cli("record", "--prompt-file", "prompts.jsonl", *few)
    (here / "more.txt").write_text("Thrice\n")
    found = run_cli("record", "--prompt-file", "more.txt", "--append", *few).json
    assert (found["requests"], found["new"]) == (4, 1)
    assert "more.txt" in found["card"]["appended"][0]["command"]
    assert "prompts.jsonl" in found["card"]["command"]
    again = run_cli("record", "--prompt-file", "more.txt", "--append", *few).json
    assert (again["requests"], again["new"]) == (4, 0)
    mixed = run_cli("record", "--prompt-file", "more.txt", "--append", *few, "--top-k", "3")
    assert "t has another sampling" in mixed.error["message"]
    assert load_traces(str(here / "t")).card["model_sha256"] == load_model().sha256


def test_what_was_recorded_and_added_to_passes_every_check(run_cli, here, prompts, text):
    few = ("--max-new-tokens", "10", "--json")
    run_cli("record", "--out", "t", "--prompts", "prompts.jsonl", *few)
    assert run_cli("record", "--out", "t", "--append", "--text", "text", "--windows", "6", *few).json["requests"] == 9
    assert [check for check in run_cli("trace", "validate", "t", "--json").json["checks"] if not check["pass"]] == []


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (("--text", "none"), "bad_file", "no such folder: none"),
        (("--text", "empty"), "bad_file", "empty holds no text"),
        (("--text", "thin", "--prompt-tokens", "200"), "bad_file", "no text is longer than 208 tokens"),
        (("--text", "latin"), "bad_file", "not UTF-8"),
        (("--text", "thin", "--prompt-tokens", "0"), "bad_value", "0 prompt tokens"),
        (("--text", "thin", "--windows", "0"), "bad_value", "0 windows"),
        (("--text", "thin", "--split", "tests"), "unknown_name", "unknown split 'tests'"),
        (("--text", "thin", "--test", "3"), "bad_value", "--test counts shipped prompts"),
        (("--text", "thin", "--prompts", "prompts.jsonl"), "bad_value", "not allowed with"),
        (("--split", "test"), "bad_value", "--split test is for"),
        (("--mode", "forced"), "unknown_name", "unknown mode 'forced'"),
        (("--mode", "teacher-forced"), "bad_value", "has no answer"),
        (("--append",), "bad_file", "no trace set t"),
        (("--temperature", "-1"), "bad_value", "temperature is -1.0"),
        (("--top-k", "-2"), "bad_value", "top_k is -2"),
        (("--max-new-tokens", "0"), "bad_value", "max_new_tokens is 0"),
    ],
)
def test_records_that_cannot_be_made_are_refused(run_cli, snapshot, here, prompts, arguments, kind, message):
    (here / "empty").mkdir()
    for name, content in (("thin", b"word " * 60), ("latin", b"caf\xe9 " * 60)):
        (here / name).mkdir()
        (here / name / "one.txt").write_bytes(content)
    before = snapshot()
    failed = run_cli("record", "--out", "t", *arguments, "--json")
    assert failed.code == 2
    assert failed.error["kind"] == kind
    assert message in failed.error["message"]
    assert failed.error["hint"]
    assert snapshot() == before
