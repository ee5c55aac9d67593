"""``clone-rl evaluate`` and ``clone-rl validate rows``: seeds, regret, rows, and the model in the loop."""

import json

import pytest

from clone_rl.agents.error_budget import EARNED, SAVED
from clone_rl.evaluation.live import LiveRunner
from clone_rl.evaluation.report import table
from clone_rl.evaluation.rows import read_rows, write_rows

pytest_plugins = ["cli_running"]

FEW = ("--requests", "3", "--oracle-requests", "1")
LIVE = ("--live", "--requests", "2", "--max-new-tokens", "4")


def test_rows_carry_seed_verdict_and_regret_in_its_parts(run_cli, trace_folder, snapshot):
    arguments = ("evaluate", "performance", "powersave", "--traces", trace_folder, "--seed", "4", "--seeds", "2", *FEW)
    found = run_cli(*arguments, "--json").json
    assert [(row["name"], row["seed"]) for row in found["rows"]] == [
        ("performance", 4), ("performance", 7), ("powersave", 4), ("powersave", 7)
    ]  # fmt: skip
    assert [row["name"] for row in found["summary"]] == ["performance", "powersave"]
    assert [row["within_constraints"] for row in found["summary"]] == [True, False]
    assert found["best"] == "performance"
    assert "| regret " in table(found["summary"])
    for row in [*found["rows"], *found["summary"]]:
        assert row["regret"] == pytest.approx(row["vf_regret"] + row["exit_regret"])
    assert found["summary"][0]["regret_requests"] == 2
    assert snapshot() == {}


def test_a_table_says_what_it_is_of(run_cli, trace_folder, here):
    asked = ("evaluate", "performance", "--traces", trace_folder, "--no-oracle", "--seeds", "2", "--requests", "3")
    limits = "limits: 1 % late, 3 % differ, dNLL 0.02"
    line = f"default on asic28-sram; test split, 3 requests x 2 seeds; replayed, no shield; {limits}"
    assert run_cli(*asked, "--max-disagree", "0.03", "--out", "rows.csv").out.splitlines()[0] == line
    found = run_cli(*asked, "--shield", "--repeats", "2", "--json").json["setting"]
    assert found == {
        "scenario": "default", "chip": "asic28-sram", "split": "test", "requests": 6, "seeds": 2, "mode": "replay",
        "shield": True, "limits": {"miss": 0.01, "disagree": 0.02, "dnll": 0.02},
    }  # fmt: skip
    told = run_cli("report", "rows.csv", "--json").json["setting"]
    assert told == {**found, "requests": 3, "shield": False, "limits": {**found["limits"], "disagree": 0.03}}
    assert line in (here / "rows-report" / "report.html").read_text()


@pytest.mark.parametrize("name", ["rows.csv", "rows.json"])
def test_rows_are_validated_by_running_them_again(run_cli, trace_folder, here, name):
    made = run_cli(
        "evaluate", "performance", "default", "--traces", trace_folder, "--requests", "3", "--no-oracle", "--out", name
    )
    assert "regret" not in made.out
    assert made.code == 0
    sound = run_cli("validate", "rows", name)
    assert (sound.code, sound.out) == (0, "6 of 6 rows give the same figures again\n")
    rows = read_rows(here / name)
    rows[4]["energy_j"] *= 1.5
    write_rows(here / name, rows)
    broken = run_cli("validate", "rows", name)
    assert broken.code == 1
    assert broken.out.startswith("row 5 (default, request 1): energy_j is ")
    assert "5 of 6 rows give the same figures again" in broken.out
    as_json = run_cli("validate", "rows", name, "--json")
    assert as_json.code == 1
    found = json.loads(as_json.out)
    assert (found["rows"], found["matching"], found["mismatches"][0]["row"]) == (6, 5, 5)


def test_another_version_and_rounding_are_told_apart(run_cli, trace_folder, here):
    run_cli("evaluate", "performance", "--traces", trace_folder, "--no-oracle", "--requests", "2", "--out", "r.json")
    content = json.loads((here / "r.json").read_text())
    content["rows"][1]["energy_j"] *= 1 + 1e-14
    (here / "r.json").write_text(json.dumps(content))
    done = run_cli("validate", "rows", "r.json")
    assert done.code == 1
    assert "--tolerance 1e-9" in done.out
    assert run_cli("validate", "rows", "r.json", "--tolerance", "1e-9").code == 0
    content["rows"][0]["energy_j"] *= 2
    for row in content["rows"]:
        row["clone_rl"] = "0.0.1"
    (here / "r.json").write_text(json.dumps(content))
    assert "written by clone-rl 0.0.1" in run_cli("validate", "rows", "r.json").out
    content["rows"][0]["rows_version"] = 7
    (here / "r.json").write_text(json.dumps(content))
    assert "row 1 is of version 7" in run_cli("validate", "rows", "r.json", "--json").error["message"]


@pytest.mark.parametrize(
    ("arguments", "kind", "message", "hint"),
    [
        (("evaluate", "pace", "--model", "x"), "bad_value", "--model x without --live", "add --live"),
        (("evaluate", "pace", "--responses", "trace"), "bad_value", "--responses trace without --live", "add --live"),
        (("evaluate", "performance", "--oracle-requests", "0"), "bad_value", "oracle requests is 0", "--no-oracle"),
        (("evaluate", "performance", "--seeds", "0"), "bad_value", "seeds is 0", "at least 1"),
        (("evaluate", "performance", "--requests", "-3"), "bad_value", "requests is -3", "at least 1"),
        (("evaluate", "performance", "--out", "rows.txt"), "bad_value", "rows file rows.txt", ".csv or .json"),
        (("validate", "rows", "none.csv"), "bad_file", "no such file: none.csv", "evaluate --out"),
        (("validate", "rows", "none.csv", "--tolerance", "2"), "bad_value", "tolerance is 2.0", "below 1"),
        (("validate", "rows", "."), "bad_file", "no such file: rows.csv", "evaluate --out"),
        (("report", "none"), "bad_file", "no such run folder or rows file: none", "clone-rl train"),
        (("report", "."), "bad_file", "holds neither rows.csv nor event files", "finish the training"),
    ],
)
def test_bad_input_is_named(run_cli, snapshot, arguments, kind, message, hint):
    error = run_cli(*arguments, "--json").error
    assert error["kind"] == kind
    assert message in error["message"]
    assert hint in error["hint"]
    assert snapshot() == {}


@pytest.mark.parametrize("responses", ["own", "trace"])
def test_the_model_answers_and_what_a_replay_predicted_stands_beside_it(run_cli, here, responses):
    more = LIVE if responses == "own" else ("--live", "--requests", "2", "--responses", "trace")
    arguments = ("evaluate", "performance", *more, "--out", f"{responses}.json", "--json")
    found = run_cli(*arguments).json
    assert found["mode"] == "live"
    (row,) = found["summary"]
    assert row["energy_ratio"] == pytest.approx(row["energy_per_token_j"] / row["replay"]["energy_per_token_j"])
    assert row["disagreement"] == row["disagreement_points"] == 0  # at full depth
    if responses == "trace":  # the same tokens through the same layers
        assert row["energy_ratio"] == pytest.approx(1.0)
        assert row["miss_points"] == 0
    rows = json.loads((here / f"{responses}.json").read_text())["rows"]
    assert [r["mode"] for r in rows] == ["live"] * 2 + ["replay"] * 2
    assert [r["seed"] for r in rows] == [0, 1, 0, 1]
    assert [r["slo"] for r in rows[:2]] == [r["slo"] for r in rows[2:]]
    if responses == "own":
        assert all(r["tokens"] <= 4 for r in rows[:2])
        assert run_cli("validate", "rows", "own.json").out == "4 of 4 rows give the same figures again\n"


def test_a_shield_guards_the_model_in_the_loop_as_it_does_the_replay(run_cli, monkeypatch):
    asked = []
    run = LiveRunner.run
    monkeypatch.setattr(LiveRunner, "run", lambda *given: asked.append(given[6:]) or run(*given))
    limits = ("--max-disagree", "0.5", "--max-dnll", "0.5")
    found = run_cli("evaluate", "default", "--live", "--requests", "2", "--shield", "--shield-exits", *limits, "--json").json
    assert (found["mode"], found["shield"]) == ("live", True)
    ((budget, exits),) = asked
    assert exits and budget.earned.tolist() == [0.5 * EARNED] * 2
    assert (budget.balance != 0.5 * SAVED * budget.earned).all()
    assert found["summary"][0]["miss_rate"] == found["summary"][0]["replay"]["miss_rate"] == 0.0


def test_prompts_that_are_not_there_and_other_models_are_named(run_cli, here, trace_folder):
    lines = [json.dumps({"prompt": f"{n} + 2 =", "answer": f" {n + 2}."}) for n in (1, 2)]
    (here / "mine.jsonl").write_text("\n".join(lines))
    assert run_cli("record", "--prompt-file", "mine.jsonl", "--out", "mine", "--max-new-tokens", "3").code == 0
    arguments = ("evaluate", "performance", "--traces", "mine", "--live", "--requests", "1")
    missing = run_cli(*arguments, "--json").error
    assert "1 of 1 prompts of traces 'mine' are not in the shipped prompts" in missing["message"]
    assert "--prompt-file" in missing["hint"]
    done = run_cli(*arguments, "--prompt-file", "mine.jsonl", "--max-new-tokens", "2")
    assert done.code == 0, done.err
    assert "what a replay of the same requests predicts" in done.out
    assert "live: 100%" in done.err
    card = json.loads((here / "mine" / "card.json").read_text())
    card["model_sha256"] = "0" * 64
    (here / "mine" / "card.json").write_text(json.dumps(card))
    assert "is not the one that traces 'mine'" in run_cli(*arguments, "--json").error["message"]
    unknown = run_cli("evaluate", "performance", "--traces", trace_folder, "--live", "--json").error
    assert "names no model" in unknown["message"]
