"""A controller of a user's own wherever the command line takes a controller's name, and its rows."""

import re
from pathlib import Path

import pytest

from clone_rl.evaluation.rows import read_rows

pytest_plugins = ["cli_running"]

MINE = """
class Mine:
    def act(self, observations):
        return [7 if row[5] < 0.2 else 3 for row in observations]

    def describe(self):
        return {"low": 3}


class Late(Mine):
    name = "late"

    def act(self, observations):
        return [0.5] * len(observations)
"""


@pytest.fixture
def mine(here):
    (here / "mine.py").write_text(MINE)
    return here / "mine.py"


def test_its_rows_are_run_again_and_a_changed_or_missing_file_is_told(run_cli, trace_folder, here, mine):
    made = run_cli(
        "evaluate", "performance", "mine.py:Mine", "--traces", trace_folder, "--requests", "3", "--oracle-requests", "1",
        "--out", "rows.csv", "--json",
    )  # fmt: skip
    assert [row["name"] for row in made.json["summary"]] == ["performance", "Mine"]
    assert "mine.py:Mine does not say everything" in made.err
    row = read_rows(here / "rows.csv")[-1]
    assert (row["controller"], row["policy"], row["settings"]) == ("Mine", "mine.py:Mine", {"low": 3})
    again = run_cli("validate", "rows", "rows.csv", "--oracle")
    assert (again.code, again.out) == (0, "6 of 6 rows give the same figures again\n")

    (here / "kept").mkdir()
    (here / "rows.csv").rename(here / "kept" / "rows.csv")
    mine.rename(here / "kept" / "mine.py")
    assert run_cli("validate", "rows", "kept/rows.csv").code == 0
    (here / "kept" / "mine.py").write_text(MINE + "raise RuntimeError('never run')\n")
    error = run_cli("validate", "rows", "kept/rows.csv", "--json").error
    assert error["kind"] == "bad_file" and "row 4 was made with other code than 'kept/mine.py:Mine' is now" in error["message"]
    (here / "kept" / "mine.py").unlink()
    error = run_cli("validate", "rows", "kept/rows.csv", "--json").error
    assert "row 4: no such file: mine.py" in error["message"] and "beside them" in error["hint"]


def test_a_wrong_answer_is_a_sentence_on_the_command_line(run_cli, trace_folder, mine, snapshot):
    before = snapshot()
    error = run_cli("evaluate", "mine.py:Late", "--traces", trace_folder, "--out", "r.csv", "--json").error
    assert (error["kind"], error["message"]) == ("bad_value", "controller 'late' returned floats, such as 0.5")
    assert {
        name: content for name, content in snapshot().items() if name.suffix != ".pyc" and name.name != "__pycache__"
    } == before


@pytest.mark.parametrize(
    "command",
    [
        ("generate", "--prompt", "Once upon", "--max-new-tokens", "2", "--controller", "mine.py:Mine"),
        ("study", "unseen", "mine.py:Mine", "performance", "--requests", "2", "--traces"),
        ("evaluate", "mine.py:Mine", "--shield", "--requests", "2", "--traces"),
    ],
    ids=["generate", "study", "shield"],
)
def test_every_command_that_takes_a_controller_takes_it(run_cli, mine, trace_folder, command):
    command = (*command, trace_folder) if command[-1] == "--traces" else command
    if command[0] == "study":  # has no --traces
        command = command[:-2]
    done = run_cli(*command)
    assert done.code == 0, done.err
    assert "warning" not in done.err and "raised" not in done.err


def test_the_example_of_the_documentation_runs(run_cli, here, trace_folder):
    page = (Path(__file__).parents[2] / "docs" / "baselines.md").read_text(encoding="utf-8")
    (example,) = [block for block in re.findall(r"^```python\n(.*?)^```", page, re.M | re.S) if "class Race" in block]
    (here / "race.py").write_text(example)
    found = run_cli("evaluate", "performance", "race.py:Race", "--traces", trace_folder, "--no-oracle", "--json").json
    top, race = found["summary"]
    assert race["name"] == "Race" and race["energy_per_token_j"] < top["energy_per_token_j"]
    assert race["mean_depth"] < top["mean_depth"]
