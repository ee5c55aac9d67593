"""``clone-rl report``: the page of a run folder or of rows, as a browser shows it."""

import base64
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from clone_rl.agents.heuristics import Fixed
from clone_rl.agents.policy import Policy
from clone_rl.evaluation.protocol import evaluate
from clone_rl.evaluation.rows import Origin, write_rows

pytest_plugins = ["cli_running"]

BROWSER = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), "")
QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars",
)  # fmt: skip


@pytest.fixture(scope="module")
def judged(control):
    controllers = [Fixed("performance", 7), Fixed("powersave", 0), Policy.load("default")]
    origin = Origin("clone-rl evaluate performance powersave default")
    return evaluate(control, controllers, "test", oracle_requests=1, origin=origin).requests


@pytest.fixture
def rows(judged, here):
    """A file of rows in the current folder."""
    write_rows(here / "rows.csv", judged)


def make_run(here):
    """A run folder as training leaves it."""
    writer = pytest.importorskip("torch.utils.tensorboard").SummaryWriter(str(here / "run" / "tensorboard"))
    for step in range(5):
        for name in ("energy_per_token_j", "miss_rate", "disagreement", "dnll", "mean_depth"):
            writer.add_scalar(f"control/{name}", 1e-5 * step, 1000 * step)
        writer.add_scalar("multiplier/miss", step, 1000 * step)
    writer.close()
    (here / "run" / "config.json").write_text(json.dumps({"train": {"max_miss": 0.01, "max_dnll": None}}))
    (here / "run" / "command.txt").write_text("clone-rl train --name run\n")


def test_rows_become_a_page_with_pictures(run_cli, rows, here):
    found = run_cli("report", "rows.csv", "--json").json
    assert [path.split("/")[-1] for path in found["files"]] == ["report.html", "pareto.png", "regret.png", "vf.png"]
    assert found["best"] == "performance"
    page = (here / "rows-report" / "report.html").read_text()
    for text in ("clone-rl evaluate performance powersave default", "sha256", "clone-rl validate rows rows.csv", "Regret"):
        assert text in page
    embedded = {base64.b64decode(data) for data in re.findall(r"base64,([\w+/=]+)", page)}
    assert len(embedded) == 6
    for path in found["files"][1:]:
        assert (here / path).read_bytes() in embedded
    assert sorted(p.name for p in here.iterdir()) == ["rows-report", "rows.csv"]
    assert run_cli("report", "rows.csv", "--out", "other").code == 0


def test_a_report_takes_the_place_of_an_earlier_one_and_of_nothing_else(run_cli, rows, here, monkeypatch):
    assert run_cli("report", "rows.csv").code == 0
    made, page = Path("rows-report"), Path("rows-report") / "report.html"
    whole = page.read_bytes()
    page.write_bytes(whole + b"old")
    (made / "curves.png").write_bytes(b"of an earlier report")
    assert run_cli("report", "rows.csv").code == 0
    assert page.read_bytes() == whole
    assert sorted(p.name for p in made.iterdir()) == ["pareto.png", "regret.png", "report.html", "vf.png"]
    assert sorted(p.name for p in here.iterdir()) == ["rows-report", "rows.csv"]

    rename = Path.rename

    def refuse(source, target):
        """The new report cannot take the place; all else can."""
        if source != made and target == made and not source.name.endswith(".before"):
            raise OSError("refused")
        return rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", refuse)
        page.write_bytes(whole + b"old")
        assert run_cli("report", "rows.csv").code != 0
    assert page.read_bytes() == whole + b"old"
    assert sorted(p.name for p in here.iterdir()) == ["rows-report", "rows.csv"]

    (made / "notes.txt").write_text("mine")
    assert "rows-report exists" in run_cli("report", "rows.csv", "--json").error["message"]
    (made / "notes.txt").unlink()
    page.write_text("<!doctype html>\nmine")
    assert "rows-report exists" in run_cli("report", "rows.csv", "--json").error["message"]
    (here / "link").symlink_to(made)
    assert "link exists" in run_cli("report", "rows.csv", "--out", "link", "--json").error["message"]
    assert "rows.csv exists" in run_cli("report", "rows.csv", "--out", "rows.csv", "--json").error["message"]
    (here / "empty").mkdir()
    assert "empty exists" in run_cli("report", "rows.csv", "--out", "empty", "--json").error["message"]
    assert page.read_text().endswith("mine")


def test_a_run_folder_becomes_a_page_with_its_curves(run_cli, rows, here):
    make_run(here)
    unfinished = run_cli("report", "run", "--out", "early", "--json").json
    assert [path.split("/")[-1] for path in unfinished["files"]] == ["report.html", "curves.png"]
    assert "has not finished" in unfinished["notes"][0]
    (here / "rows.csv").rename(here / "run" / "rows.csv")
    assert run_cli("report", "run").out.splitlines()[-1] == "run/report/curves.png"
    page = (here / "run" / "report" / "report.html").read_text()
    assert page.index("clone-rl train --name run") < page.index("clone-rl evaluate performance")
    assert "<h2>Training</h2>" in page


def test_what_cannot_be_run_again_is_left_out_and_said(run_cli, rows, here):
    text = (here / "rows.csv").read_text()
    sha256 = re.search(r"sha256\"\": \"\"(\w{64})", text)[1]
    (here / "rows.csv").write_text(text.replace(sha256, "0" * 64))
    found = run_cli("report", "rows.csv", "--json").json
    assert not any("vf.png" in path for path in found["files"])
    assert any("another policy than 'default'" in note for note in found["notes"])
    assert len(found["summary"]) == 3


def test_rows_that_are_none_leave_nothing(run_cli, here, snapshot):
    (here / "rows.csv").write_text("controller,energy_j\npace,1\n")
    before = snapshot()
    assert "row 1 has no rows_version" in run_cli("report", "rows.csv", "--json").error["message"]
    assert "no such folder: none" in run_cli("report", "rows.csv", "--out", "none/page", "--json").error["message"]
    assert snapshot() == before


@pytest.mark.skipif(not BROWSER, reason="no chromium, chromium-browser or google-chrome on this machine")
def test_a_browser_shows_all_of_it_on_a_phone_and_on_a_desk(run_cli, rows, here, tmp_path):
    make_run(here)
    (here / "rows.csv").rename(here / "run" / "rows.csv")
    assert run_cli("report", "run").code == 0
    page = here / "run" / "report" / "report.html"
    probe = (
        "<script>addEventListener('load', () => { const i = [...document.images]; document.title = JSON.stringify({"
        "over: document.documentElement.scrollWidth - innerWidth, "
        "images: i.length, broken: i.filter(x => !x.naturalWidth).length, cut: i.filter(x => x.clientWidth < 300).length, "
        "tables: document.querySelectorAll('table').length, small: getComputedStyle(document.body).fontSize}) })</script>"
    )
    # The page itself runs no script; the copy that is measured does.
    text = re.sub(r"<meta http-equiv=Content-Security-Policy[^>]*>", "", page.read_text()).replace(
        "</body>", probe + "</body>"
    )
    (here / "measured.html").write_text(text)

    def browse(*arguments):
        command = [BROWSER, *QUIET, f"--user-data-dir={tmp_path / 'profile'}", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout

    for width in (500, 1200):  # no window of Chromium is narrower than 500
        shown = browse(f"--window-size={width},900", "--dump-dom", f"file://{here / 'measured.html'}")
        seen = json.loads(re.search(r"<title>(.*?)</title>", shown)[1])
        assert seen["over"] <= 0, width
        assert (seen["images"], seen["broken"], seen["cut"]) == (4, 0, 0)
        assert seen["tables"] == 2 + 4
        assert seen["small"] == "16px"
    browse("--window-size=1200,2000", f"--screenshot={here / 'page.png'}", f"file://{page}")
    assert (here / "page.png").stat().st_size > 50_000
