"""Every command that writes, on a disk that is full: one sentence, exit code 2, and what was there stays."""

import ast
import errno
import os
import shutil
from pathlib import Path

import pytest

import clone_rl
from clone_rl import files

pytest_plugins = ["cli_running"]

PACKAGE = Path(clone_rl.__file__).parent
TRAIN = ("train", "--steps", "128", "--envs", "4", "--rollout", "32", "--env-id", "clone_rl/TokenControl-v0", "--name", "run")


@pytest.fixture
def full(monkeypatch):
    """From now on, files whose names end so are written to a device that is always full."""

    def fill(*endings):
        aside = files._aside

        def to_full(path):
            if not path.name.endswith(endings):
                return aside(path)
            link = path.with_name(f".{path.name}.aside")
            link.symlink_to("/dev/full")
            return link

        monkeypatch.setattr(files, "_aside", to_full)

    return fill


@pytest.mark.parametrize(
    ("arguments", "written"),
    [
        (("evaluate", "performance", "--no-oracle", "--out", "rows.csv"), "rows.csv"),
        (("evaluate", "performance", "--no-oracle", "--out", "rows.json"), "rows.json"),
        (("export", "default", "--to", "onnx", "--out", "p.onnx", "--observations", "50"), "p.onnx"),
        (("export", "default", "--to", "c", "--out", "p.h", "--observations", "50"), "p.h"),
        (("export", "default", "--to", "c", "--out", "p.h", "--observations", "50"), "p-golden.c"),
        (
            ("generate", "--prompt", "hi", "--max-new-tokens", "2", "--controller", "performance", "--picture", "p.png"),
            "p.png",
        ),
        (("trace", "show", "--plot", "p.png"), "p.png"),
        (("chip", "cost", "--plot", "p.png"), "p.png"),
        (("tune", "static", "--trials", "2", "--out", "tuned.json", "--name", "run"), "tuned.json"),
    ],
)
def test_a_full_disk_is_a_sentence(run_cli, full, snapshot, here, trace_folder, arguments, written):
    if arguments[0] in ("evaluate", "tune"):
        arguments = (*arguments, "--traces", trace_folder)
    if arguments[0] == "trace":
        arguments = (*arguments, trace_folder)
    before = snapshot()
    full(written)
    done = run_cli(*arguments)
    shutil.rmtree(here / "runs", ignore_errors=True)
    said = done.err[done.err.index("clone-rl: cannot write") :].splitlines()
    assert done.code == 2
    assert said[0] == f"clone-rl: cannot write {written}: No space left on device"
    assert said[1].startswith("  free some space there")
    assert len(said) == 2
    assert snapshot() == before


@pytest.mark.parametrize("written", ["config.json", "command.txt"])
@pytest.mark.parametrize("command", [TRAIN, ("tune", "static", "--name", "run")])
def test_a_run_folder_that_cannot_be_begun_is_not_there(run_cli, full, here, trace_folder, command, written):
    full(written)
    done = run_cli(*command, "--traces", trace_folder, "--json")
    assert done.code == 2
    assert done.error["message"] == f"cannot write runs/run/{written}: No space left on device"
    assert list((here / "runs").iterdir()) == []


def test_training_on_a_full_disk_keeps_what_it_reached_and_goes_on_later(run_cli, monkeypatch, here, trace_folder):
    folder = here / "runs" / "run"
    aside, checkpoints = files._aside, []

    def full_at_the_second(path):
        if path.name != "checkpoint.pt":
            return aside(path)
        checkpoints.append(path)
        if len(checkpoints) == 1:
            return aside(path)
        link = path.with_name(".checkpoint.pt.aside")
        link.symlink_to("/dev/full")
        return link

    long = (*TRAIN[:2], "1024", *TRAIN[3:], "--checkpoint-every", "2", "--traces", trace_folder)
    whole = run_cli(*long[:-4], "--checkpoint-every", "2", "--traces", trace_folder, "--runs", "whole")
    assert whole.code == 0, whole.err
    with monkeypatch.context() as patch:
        patch.setattr(files, "_aside", full_at_the_second)
        done = run_cli(*long)
    assert done.code == 2
    last = done.err.splitlines()[-1]
    assert last.endswith("what was reached is in runs/run, continue with: clone-rl train --resume runs/run")
    assert "Traceback" not in done.err
    assert (folder / "checkpoint.pt").exists()
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []
    done = run_cli("train", "--resume", "runs/run")
    assert done.code == 0, done.err
    assert (folder / "policy.safetensors").read_bytes() == (here / "whole" / "run" / "policy.safetensors").read_bytes()


@pytest.mark.parametrize("written", ["policy.safetensors", "policy.json", "results.json", "rows.csv"])
def test_what_training_comes_to_is_written_later(run_cli, full, here, trace_folder, monkeypatch, written):
    with monkeypatch.context():
        aside = files._aside
        full(written)
        done = run_cli(*TRAIN, "--traces", trace_folder)
        monkeypatch.setattr(files, "_aside", aside)
    assert done.code == 2
    assert f"cannot write runs/run/{written}: No space left on device" in done.err
    assert "continue with: clone-rl train --resume runs/run" in done.err
    assert not (here / "runs" / "run" / "results.json").exists() or written == "rows.csv"
    done = run_cli("train", "--resume", "runs/run")
    assert done.code == 0, done.err
    assert run_cli("validate", "rows", "runs/run").code == 0


def test_a_page_is_there_whole_or_not_at_all(run_cli, here, trace_folder, monkeypatch):
    assert run_cli("evaluate", "performance", "pace", "--traces", trace_folder, "--no-oracle", "--out", "rows.csv").code == 0
    write = Path.write_bytes

    def no_room(path, data):
        if path.suffix == ".png":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", no_room)
    done = run_cli("report", "rows.csv")
    assert done.code == 2
    assert "cannot write rows-report: No space left on device" in done.err
    assert sorted(path.name for path in here.iterdir()) == ["rows.csv"]


def test_a_recording_keeps_what_is_finished(run_cli, full, here):
    (here / "prompts.txt").write_text("one\ntwo\nthree\n")
    full("card.json", "traces", "ready")
    arguments = ("record", "--prompt-file", "prompts.txt", "--out", "traces", "--max-new-tokens", "2")
    done = run_cli(*arguments)
    assert done.code == 2
    assert "what was reached is in traces.partial, continue with: the same command" in done.err
    assert not (here / "traces").exists()
    assert len(list((here / "traces.partial").glob("*.npz"))) == 3


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EDQUOT])
def test_places_that_may_not_be_written_are_told(run_cli, here, monkeypatch, number, trace_folder):
    def refuse(path, *_, **__):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    for command in (TRAIN, ("tune", "static", "--name", "run")):
        done = run_cli(*command, "--traces", trace_folder)
        assert done.code == 2
        assert f"clone-rl: cannot write runs/run: {os.strerror(number)}" in done.err


WRITERS = {"write_text", "write_bytes", "savefig", "save_pretrained", "copyfile", "mkdir"}
GUARDS = {"replacing", "building", "writing"}

# Which write into memory, into a temporary folder, or into what the function that calls them has opened.
ELSEWHERE = {
    "code_cache.py",
    "files.py",
    "evaluation/theme.py",
    "evaluation/picture_file.py",
    "runtime/export/compiler.py",
    "llm/release.py",
}


def unguarded(node, guarded=False):
    """Calls that write, outside of what explains a full disk."""
    if isinstance(node, ast.With):
        named = {getattr(item.context_expr.func, "id", "") for item in node.items if isinstance(item.context_expr, ast.Call)}
        guarded = guarded or bool(named & GUARDS)
    if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in WRITERS and not guarded:
        yield node.lineno
    for child in ast.iter_child_nodes(node):
        yield from unguarded(child, guarded)


def test_everything_is_written_where_a_full_disk_is_explained():
    for path in sorted(PACKAGE.rglob("*.py")):
        if (name := path.relative_to(PACKAGE).as_posix()) not in ELSEWHERE:
            assert list(unguarded(ast.parse(path.read_text(encoding="utf-8")))) == [], name
