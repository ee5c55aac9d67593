"""Where compiled code is kept, and that nothing fails where it cannot be."""

import errno
import importlib.util
import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from compiled_code import has_room, keep_compiled_code
from numba.core import caching, config

from clone_rl import code_cache
from clone_rl.code_cache import CodeCache

_SOURCE = """
from clone_rl.code_cache import kept

@kept
def double(x):
    return 2 * x
"""


class Place:
    """A module whose folder, user's cache and temporary folder are those of a test."""

    def __init__(self, root):
        self.source = root / "sources" / "doubling.py"
        self.home, self.tmp = root / "home", root / "tmp"
        self.source.parent.mkdir()
        self.source.write_text(_SOURCE)
        self.tmp.mkdir()

    def double(self, x=2):
        """The function in a module that was just imported: ``(result, whether it was compiled)``."""
        spec = importlib.util.spec_from_file_location("doubling", self.source)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.double(x), sum(module.double.stats.cache_misses.values()) == 1

    def refuse(self, *which):
        """Places that cannot be made, by nobody: a file is in the way."""
        for path in which:
            path.parent.mkdir(exist_ok=True)
            path.write_text("")

    @property
    def beside(self):
        return self.source.parent / "__pycache__"

    def files(self, ending):
        return sorted(self.beside.glob(f"*.{ending}"))


@pytest.fixture
def place(tmp_path, monkeypatch):
    place = Place(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(config, "CACHE_DIR", "")
    monkeypatch.setenv("HOME", str(place.home))
    monkeypatch.setenv("XDG_CACHE_HOME", str(place.home / ".cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(place.tmp))
    monkeypatch.setattr(CodeCache, "_warned", False)
    return place


def _warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_code_is_kept_beside_its_source(place, caplog):
    """As Numba does; nothing is said, and nothing is made elsewhere."""
    assert [place.double(), place.double()] == [(4, True), (4, False)]
    assert place.files("nbc")
    assert not place.home.exists()
    assert not list(place.tmp.iterdir())
    assert not _warnings(caplog)


def test_where_no_usual_place_can_be_written_it_is_kept_in_a_temporary_folder(place, caplog):
    """Of this user alone, with one line of warning, and it is found again."""
    place.refuse(place.beside, place.home)
    assert [place.double(), place.double(), place.double(2.5)] == [(4, True), (4, False), (5.0, True)]
    (folder,) = place.tmp.iterdir()
    assert _warnings(caplog) == [
        f"compiled code is kept in {folder} (no usual folder can be written); NUMBA_CACHE_DIR chooses a place"
    ]
    if hasattr(os, "getuid"):
        assert folder.stat().st_mode & 0o777 == 0o700


def test_where_no_place_at_all_can_be_written_each_start_compiles(place, caplog, monkeypatch):
    """No temporary folder either: the same results, one line."""
    place.refuse(place.beside, place.home)
    monkeypatch.setattr(tempfile, "tempdir", str(place.source))
    assert [place.double(), place.double(3)] == [(4, True), (6, True)]
    (line,) = _warnings(caplog)
    assert line.startswith("compiled code is kept nowhere, each start compiles (")


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="the temporary folder is the user's own here")
@pytest.mark.parametrize("how", ["open to others", "a link"])
def test_code_in_a_folder_that_others_could_have_written_is_not_run(place, caplog, how, tmp_path):
    """The temporary folder is everybody's, and code that is read from it is run."""
    place.refuse(place.beside, place.home)
    place.double()
    (folder,) = place.tmp.iterdir()
    if how == "open to others":
        folder.chmod(0o777)
    else:
        folder.rename(tmp_path / "theirs")
        folder.symlink_to(tmp_path / "theirs")
    CodeCache._warned = False
    assert place.double() == (4, True)
    assert "is kept nowhere" in _warnings(caplog)[-1]


@pytest.mark.parametrize("full", ["beside", "everywhere"])
@pytest.mark.parametrize("what", ["nbi", "nbc"])
def test_a_full_disk_costs_nothing_but_the_cache(place, caplog, monkeypatch, full, what):
    """Whichever file it is that no longer fits."""
    opened = caching.IndexDataCacheFile._open_for_write

    def open_for_write(self, path):
        if path.endswith(what) and (full == "everywhere" or str(place.beside) in path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return opened(self, path)

    monkeypatch.setattr(caching.IndexDataCacheFile, "_open_for_write", open_for_write)
    assert [place.double(), place.double()] == [(4, True), (4, full == "everywhere")]
    (line,) = _warnings(caplog)
    assert "No space left on device" in line
    assert ("nowhere" in line) == (full == "everywhere")


def test_an_index_that_was_written_before_the_disk_was_full_does_not_bring_back_earlier_code(place, monkeypatch):
    """Numba writes the index first, and numbers its files anew for each state of the source."""
    assert place.double() == (4, True)
    place.source.write_text(_SOURCE.replace("2 *", "3 *"))

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(caching.IndexDataCacheFile, "_save_data", full)
        assert place.double() == (6, True)
    assert [place.double(), place.double()] == [(6, True), (6, False)]


def _cut(content):
    return content[: len(content) // 2]


def _empty(content):
    return b""


def _zeroed(content):
    return bytes(len(content))


def _flipped(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize("damage", [_cut, _empty, _zeroed, _flipped])
@pytest.mark.parametrize("ending", ["nbi", "nbc"])
def test_damaged_code_is_made_anew(place, caplog, ending, damage):
    """And kept again; that of other versions, without a hash at its end, is damaged too."""
    place.double()
    (path,) = place.files(ending)
    path.write_bytes(damage(path.read_bytes()))
    assert [place.double(), place.double()] == [(4, True), (4, False)]
    assert not _warnings(caplog)


def test_code_is_of_one_version_of_the_package(place, monkeypatch):
    """A function whose own file is as it was may call what has changed."""
    place.double()
    monkeypatch.setattr(code_cache, "__version__", "another")
    assert place.double() == (4, True)


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits on the size of files")
def test_files_that_may_not_grow(tmp_path):
    """A limit of the operating system's, in a process of its own: the smallest that holds an index but no code."""
    program = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096));"
        "from clone_rl.hw_emulator.cost import attended; print(attended(4.0, 2.0))"
    )
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache"), "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "7.0\n"
    assert done.stderr.count("\n") == 1
    assert "nowhere" in done.stderr
    assert not [path for path in tmp_path.rglob("*") if ".tmp." in path.name]


@pytest.mark.slow
def test_a_package_that_cannot_be_written_works(tmp_path):
    """Command line, environments and the host's controller, where neither the package nor a home can be written."""
    package = Path(code_cache.__file__).parent
    for path in package.rglob("*"):
        copy = tmp_path / "clone_rl" / path.relative_to(package)
        if path.is_dir() and path.name != "__pycache__":
            copy.mkdir(parents=True)
            (copy / "__pycache__").write_text("")  # in the way, of root too
        elif path.suffix == ".py":
            copy.write_bytes(path.read_bytes())
        elif path.is_file() and path.parent.name != "__pycache__":
            copy.symlink_to(path)
    (tmp_path / "clone_rl" / "__pycache__").write_text("")
    (tmp_path / "tmp").mkdir()
    (tmp_path / "home").write_text("")
    home = {name: str(tmp_path / "home" / "x") for name in ("HOME", "XDG_CACHE_HOME")}
    environment = {**os.environ, **home, "PYTHONPATH": str(tmp_path), "TMPDIR": str(tmp_path / "tmp")}
    del environment["NUMBA_CACHE_DIR"]

    def run(*command):
        done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done

    assert run("-m", "clone_rl.cli.main", "--version").stderr == ""
    using = (
        f"import clone_rl, gymnasium as gym; assert clone_rl.__file__.startswith({str(tmp_path)!r});"
        "env = gym.make('clone_rl/LayerControl-v0'); env.reset(seed=0); env.step(7);"
        "request = clone_rl.RuntimeController.load('default').begin('1', slo='chatbot');"
        "print(request.decide([0.0] * 16))"
    )
    for _ in range(2):
        said = run("-c", using).stderr.splitlines()
        assert len(said) == 1
        assert said[0].startswith(f"compiled code is kept in {tmp_path / 'tmp'}")
    assert len(run("-m", "clone_rl.cli.main", "chip", "cost", "--model", "default").stderr.splitlines()) == 1


@pytest.mark.parametrize("what", ["HOME", "NUMBA_CACHE_DIR"])
def test_the_tests_themselves_go_elsewhere_where_a_place_cannot_be_written(monkeypatch, tmp_path, what):
    """What they run is a hundred processes, each of which would compile anew."""
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in ("HOME", "NUMBA_CACHE_DIR"):
        monkeypatch.setenv(name, str(tmp_path / ("file/below" if name == what else "fine")))
    keep_compiled_code()
    assert has_room(os.environ[what])
    assert Path(os.environ[what]).parent == tmp_path
    assert ({"HOME", "NUMBA_CACHE_DIR"} - {what}).pop() in {k for k, v in os.environ.items() if v == str(tmp_path / "fine")}
