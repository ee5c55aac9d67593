import errno
import os
import threading

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from stable_baselines3.common.logger import Logger
from tensorboard.compat.tensorflow_stub.io import gfile

from clone_rl import files
from clone_rl.agents.telemetry import board
from clone_rl.agents.trial_journal import TrialJournal
from clone_rl.errors import BadValueError, StoppedError
from clone_rl.evaluation.journal import Journal
from clone_rl.files import WriteError, append_line, building, replacing, write_together

REFUSALS = {
    errno.ENOSPC: ("No space left on device", "free some space"),
    errno.EDQUOT: ("Disk quota exceeded", "free some space"),
    errno.EFBIG: ("File too large", "free some space"),
    errno.EACCES: ("Permission denied", "that you may write to"),
    errno.EROFS: ("Read-only file system", "that you may write to"),
}


def refusal(number):
    return OSError(number, os.strerror(number))


@pytest.fixture
def full(monkeypatch):
    """What is written aside goes to a device that is always full."""

    def aside(path):
        link = path.with_name(f".{path.name}.aside")
        link.symlink_to("/dev/full")
        return link

    monkeypatch.setattr(files, "_aside", aside)


@pytest.mark.parametrize("number", REFUSALS)
def test_what_the_system_refuses_is_a_sentence_about_the_file(tmp_path, number):
    said, remedy = REFUSALS[number]
    path = tmp_path / "figures.txt"
    path.write_text("precious")
    with pytest.raises(WriteError) as caught, replacing(path) as aside:
        aside.write_text("half")
        raise refusal(number)
    assert caught.value.message == f"cannot write {path}: {said}"
    assert remedy in caught.value.hint
    assert path.read_text() == "precious"
    assert [p.name for p in tmp_path.iterdir()] == ["figures.txt"]


@pytest.mark.parametrize(
    "write",
    [
        lambda aside: aside.write_bytes(b"x" * 10),
        lambda aside: aside.write_text("x"),
        lambda aside: torch.save({"weights": torch.zeros(20_000)}, aside.open("wb")),
        lambda aside: np.save(aside.open("wb"), np.zeros(2000)),
    ],
    ids=["bytes", "text", "torch", "numpy"],
)
def test_a_full_disk_leaves_what_was_there(tmp_path, full, write):
    path = tmp_path / "kept"
    path.write_text("precious")
    with pytest.raises(WriteError, match="kept: No space left on device"), replacing(path) as aside:
        write(aside)
    assert path.read_text() == "precious"
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]


def test_what_other_libraries_say_of_a_full_disk_is_understood(tmp_path):
    said = "Error while serializing: I/O error: No space left on device (os error 28)"
    with pytest.raises(WriteError, match="probe: No space left on device"), replacing(tmp_path / "probe"):
        raise SafetensorError(said)


def test_other_errors_pass(tmp_path):
    with pytest.raises(BadValueError, match="negative"), replacing(tmp_path / "a"):
        try:
            raise refusal(errno.ENOSPC)
        except OSError:
            raise BadValueError("negative") from None
    with pytest.raises(FileNotFoundError, match="elsewhere"), replacing(tmp_path / "a"):
        (tmp_path / "elsewhere" / "b").read_text()
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "a"):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_filled_is_not_there(tmp_path):
    with pytest.raises(WriteError, match="traces: No space left"), building(tmp_path / "traces") as aside:
        (aside / "half").write_text("half")
        raise refusal(errno.ENOSPC)
    assert list(tmp_path.iterdir()) == []
    with building(tmp_path / "traces") as aside:
        (aside / "whole").write_text("whole")
    assert [p.name for p in (tmp_path / "traces").iterdir()] == ["whole"]


def test_a_folder_under_a_file_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="Not a directory"), building(tmp_path / "file" / "traces"):
        pass


def test_of_files_that_belong_together_none_is_replaced_alone(tmp_path, monkeypatch):
    paths = [tmp_path / "policy.safetensors", tmp_path / "policy.json"]
    for path in paths:
        path.write_text("before")
    aside = files._aside

    def full_for_cards(path):
        if path.suffix != ".json":
            return aside(path)
        link = path.with_name(".card")
        link.symlink_to("/dev/full")
        return link

    monkeypatch.setattr(files, "_aside", full_for_cards)
    with pytest.raises(WriteError, match=r"policy\.json"):
        write_together({paths[0]: b"after", paths[1]: b"after"})
    assert [path.read_text() for path in paths] == ["before", "before"]
    monkeypatch.undo()
    write_together({paths[0]: b"weights", paths[1]: b"card"})
    assert [path.read_text() for path in paths] == ["weights", "card"]
    assert sorted(tmp_path.iterdir()) == sorted(paths)


def test_a_line_is_added_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "lines"
    append_line(path, "one")
    append_line(path, "zwölf")

    def no_room(_descriptor):
        raise refusal(errno.ENOSPC)

    monkeypatch.setattr(os, "fsync", no_room)
    with pytest.raises(WriteError, match="lines: No space left on device"):
        append_line(path, "three")
    assert path.read_text(encoding="utf-8") == "one\nzwölf\n"


def test_journals_go_on_where_a_full_disk_stopped_them(tmp_path, monkeypatch):
    import optuna
    from optuna.storages import JournalStorage

    def study():
        storage = JournalStorage(TrialJournal(tmp_path / "trials"))
        return optuna.create_study(study_name="search", storage=storage, load_if_exists=True)

    study().enqueue_trial({"x": 1.0})
    Journal(tmp_path / "pieces").add("a", 1)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(refusal(errno.ENOSPC)))
        with pytest.raises(WriteError, match="pieces"):
            Journal(tmp_path / "pieces").add("b", 2)
        with pytest.raises(WriteError, match="trials"):
            study().ask()
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    Journal(tmp_path / "pieces").add("b", 2)
    assert Journal(tmp_path / "pieces").known == {"a": 1, "b": 2}
    assert study().ask().suggest_float("x", 0.0, 2.0) == 1.0


def test_event_files_on_a_full_disk_are_told_without_a_traceback(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gfile.LocalFileSystem, "append", lambda *_: (_ for _ in ()).throw(refusal(errno.ENOSPC)))
    hook = threading.excepthook

    def write(log: Logger):
        try:
            for step in range(200):
                log.record("figure", step)
                log.dump(step)
        finally:
            log.close()

    with pytest.raises(WriteError, match=f"cannot write {tmp_path}/events: No space left on device"):
        write(board(tmp_path / "events"))
    assert threading.excepthook is hook
    assert "Traceback" not in capsys.readouterr().err


def test_long_work_says_how_to_go_on(tmp_path):
    from clone_rl.cli.run_folder import keeping

    with pytest.raises(WriteError) as caught, keeping(tmp_path, "clone-rl train --resume run"):
        raise WriteError("cannot write run/checkpoint.pt: No space left on device", "free some space there")
    assert caught.value.hint == (
        f"free some space there; what was reached is in {tmp_path}, continue with: clone-rl train --resume run"
    )
    with pytest.raises(StoppedError), keeping(tmp_path, "x"):
        raise StoppedError("interrupted")
