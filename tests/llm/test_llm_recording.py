import dataclasses
import json
import os
import signal

import numpy as np
import pytest

from clone_rl.envs.trace import load_traces
from clone_rl.errors import BadFileError, BadValueError
from clone_rl.llm import record as module
from clone_rl.llm.documents import Responses, prompt_documents
from clone_rl.llm.prompts import Prompt
from clone_rl.llm.recording import record_to
from clone_rl.llm.sampling import Sampling

pytest_plugins = ["llm_models", "tiny_lm"]

FEW = Responses(max_new_tokens=6)
PROMPTS = [
    ("train", Prompt("sum", "1 + 1 =", " 2", 1)),
    ("train", Prompt("story", "Once", "", 2)),
    ("test", Prompt("sum", "2 + 2 =", " 4", 3)),
    ("validation", Prompt("story", "Twice", "", 4)),
]


@pytest.fixture(scope="module")
def chosen(tiny_lm):
    return prompt_documents(tiny_lm, PROMPTS, FEW)


@pytest.fixture
def write(tiny_lm, chosen, tmp_path):
    """Record some of the documents into a folder, ``set`` if nothing else is said."""

    def write(documents=chosen, responses=FEW, lm=tiny_lm, out="set", **options):
        return record_to(tmp_path / out, lm, documents, responses, quiet=True, **options)

    return write


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def stop_after(monkeypatch, count, stop):
    """Recording stops when it begins with one document more."""
    measure, done = module.measure, []

    def counted(lm, document):
        if len(done) == count:
            stop()
        done.append(document.key)
        return measure(lm, document)

    monkeypatch.setattr(module, "measure", counted)
    return done


def interrupt():
    raise KeyboardInterrupt


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_set_appears_complete_and_alone(write, tmp_path):
    traces, new = write()
    assert new == 4
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    again = load_traces(str(tmp_path / "set"))
    assert all(np.array_equal(getattr(again, name), getattr(traces, name)) for name in module.PER_TOKEN)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_killed_recording_continues_to_the_same_bytes(write, tmp_path, monkeypatch, count):
    write(out="whole")
    if (child := os.fork()) == 0:
        stop_after(monkeypatch, count, kill)
        write()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert not (tmp_path / "set").exists()
    done = stop_after(monkeypatch, -1, interrupt)
    write()
    assert len(done) == 4 - count
    assert content(tmp_path / "set") == content(tmp_path / "whole")
    assert {path.name for path in tmp_path.iterdir()} == {"set", "whole"}


def test_a_document_that_was_cut_off_while_written_is_recorded_again(write, tmp_path, monkeypatch, chosen):
    write(out="whole")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, 2, interrupt)
        write()
    half = tmp_path / "set.partial" / f"{chosen[0].key}.npz"
    half.write_bytes(half.read_bytes()[:200])
    (tmp_path / "set.partial" / f"{chosen[1].key}.npz").write_bytes(b"")
    done = stop_after(monkeypatch, -1, interrupt)
    write()
    assert len(done) == 4
    assert content(tmp_path / "set") == content(tmp_path / "whole")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("model sha256", {"lm": {"sha256": "of others"}}),
        ("precision", {"lm": {"precision": "int4"}}),
        ("sampling", {"responses": Responses("auto", 6, Sampling(0.0))}),
        ("max new tokens", {"responses": Responses("auto", 7)}),
        ("mode", {"responses": Responses("free-running", 6)}),
        ("prompts sha256", {"fewer": True}),
    ],
)
def test_what_another_recording_began_is_not_continued(write, tmp_path, tiny_lm, chosen, monkeypatch, name, change):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, 1, interrupt)
        write()
    before = content(tmp_path / "set.partial")
    with pytest.raises(BadFileError, match=f"unfinished recording with another {name}") as caught:
        write(
            chosen[1:] if change.get("fewer") else chosen,
            change.get("responses", FEW),
            dataclasses.replace(tiny_lm, **change.get("lm", {})),
        )
    assert "remove the folder" in caught.value.hint
    assert content(tmp_path / "set.partial") == before


@pytest.mark.parametrize("name", ["notes.txt", "recording.json"])
def test_a_folder_of_something_else_is_left_alone(write, tmp_path, name):
    (tmp_path / "set.partial").mkdir()
    (tmp_path / "set.partial" / name).write_text("precious")
    with pytest.raises(BadFileError, match=r"not an unfinished recording|damaged"):
        write()
    assert content(tmp_path / "set.partial") == {name: b"precious"}


def test_nothing_is_overwritten_and_nothing_appended_to_nothing(write, tmp_path):
    with pytest.raises(BadFileError, match="no trace set"):
        write(append=True)
    write()
    with pytest.raises(BadFileError, match="exists") as caught:
        write()
    assert "--append" in caught.value.hint


def test_appending_gives_the_set_recorded_at_once(write, tmp_path, chosen):
    whole, _ = write(out="whole")
    write(chosen[:2], command="first")
    both, new = write(chosen[1:], append=True, command="second")
    assert new == 2
    again = load_traces(str(tmp_path / "set"))
    for name in (*module.PER_TOKEN, "offset", "prompt_tokens", "split", "kind", "sampled"):
        assert np.array_equal(getattr(again, name), getattr(whole, name)), name
    assert again.card["sha256"] == both.card["sha256"] == whole.card["sha256"]
    assert again.card["command"] == "first"
    assert again.card["appended"] == [{**again.card["appended"][0], "command": "second", "mode": "auto", "requests": 2}]
    assert {path.name for path in tmp_path.iterdir()} == {"set", "whole"}
    before = content(tmp_path / "set")
    assert write(chosen[:3], append=True)[1] == 0
    assert content(tmp_path / "set") == before


def test_both_modes_may_be_in_a_set(write, tiny_lm):
    write()
    free = Responses("free-running", 6)
    both, new = write(prompt_documents(tiny_lm, PROMPTS, free), free, append=True)
    assert new == 2  # the stories are the model's own either way
    assert both.card["mode"] == "mixed"
    assert both.sampled.tolist() == [0, 1, 0, 1, 1, 1]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("model sha256", {"sha256": "of others"}),
        ("precision", {"precision": "int4"}),
        ("sampling", {}),
        ("probe sha256", {"probe": True}),
    ],
)
def test_appending_mixes_nothing(write, tmp_path, tiny_lm, chosen, name, change):
    write(chosen[:2])
    before = content(tmp_path / "set")
    responses = Responses("auto", 6, Sampling(0.5)) if not change else FEW
    if "probe" in change:
        other = type(tiny_lm.probe)()
        other.sha256 = "of other means"
        change = {"probe": other}
    with pytest.raises(BadValueError, match=f"set has another {name}"):
        write(chosen, responses, dataclasses.replace(tiny_lm, **change), append=True)
    assert content(tmp_path / "set") == before
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize("missing", [True, False])
def test_an_interrupted_append_leaves_the_set_and_continues(write, tmp_path, monkeypatch, chosen, missing):
    whole, _ = write(out="whole")
    write(chosen[:2])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, 1, interrupt)
        write(append=True)
    assert len(load_traces(str(tmp_path / "set")).split) == 2
    if missing:  # as if the power had gone between the two renames that replace the set
        (tmp_path / "set").rename(tmp_path / "set.partial" / "earlier")
    both, new = write(append=True)
    assert new == 2
    assert both.card["sha256"] == whole.card["sha256"]
    assert json.loads((tmp_path / "set" / "card.json").read_text())["sha256"] == whole.card["sha256"]
    assert {path.name for path in tmp_path.iterdir()} == {"set", "whole"}
