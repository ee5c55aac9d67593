import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import clone_rl.hw_emulator
import clone_rl.llm
from clone_rl.envs.scenario import Scenario
from clone_rl.envs.trace import load_traces
from clone_rl.llm.model import load_model

pytest_plugins = ["cli_running"]

CHIP = Path(clone_rl.hw_emulator.__file__).parent / "chips" / "asic28-sram.toml"
FIGURES = ("energy_per_token_j", "avg_power_w", "miss_rate", "disagreement", "dnll", "mean_depth")
QUICK = ("--max-new-tokens", "6", "--controller", "performance")


def rows_of(result):
    return {row["name"]: row for row in result["rows"]}


def test_evaluate_gives_every_figure_with_its_interval(run_cli, trace_folder, snapshot):
    result = run_cli(
        "evaluate", "performance", "powersave", "default", "--traces", trace_folder, "--seed", "3", "--no-oracle", "--json"
    ).json
    assert (result["scenario"], result["split"], result["seed"]) == ("default", "test", 3)
    rows = rows_of(result)
    assert list(rows) == ["performance", "powersave", "default"]
    for row in rows.values():
        for key in FIGURES:
            low, high = row[f"{key}_ci"]
            assert low - 1e-12 <= row[key] <= high + 1e-12
    assert rows["performance"]["mean_depth"] == 10
    assert rows["performance"]["energy_per_token_j"] > rows["powersave"]["energy_per_token_j"] > 0
    assert rows["performance"]["miss_rate"] < rows["powersave"]["miss_rate"]
    assert rows["default"]["settings"]["parameters"] > 0
    assert snapshot() == {}


def test_evaluate_for_people_is_a_table(run_cli, trace_folder):
    done = run_cli("evaluate", "performance", "pace", "--traces", trace_folder, "--split", "validation", "--no-oracle")
    assert done.code == 0
    setting, head, rule, *rows = done.out.splitlines()
    assert setting.startswith("default on asic28-sram; validation split, 5 requests x 1 seed; replayed, no shield")
    assert {"controller", "uJ/token", "mW", "late", "depth"} <= set(head.replace("|", " ").split())
    assert set(rule) == set("|-")
    assert [row.split()[1] for row in rows] == ["performance", "pace"]


def test_evaluate_gives_the_same_twice_and_something_else_for_another_seed(run_cli, trace_folder):
    results = [
        run_cli("evaluate", "powersave", "--traces", trace_folder, "--seed", s, "--no-oracle", "--json").json
        for s in (1, 1, 2)
    ]
    assert results[0] == results[1]
    assert results[0]["rows"] != results[2]["rows"]


def test_rows_of_an_evaluation_go_to_a_file(run_cli, trace_folder, here):
    arguments = (
        "evaluate",
        "performance",
        "powersave",
        "--traces",
        trace_folder,
        "--repeats",
        "2",
        "--no-oracle",
        "--out",
        "rows.csv",
    )
    assert run_cli(*arguments).code == 0
    with (here / "rows.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * len(load_traces(trace_folder).documents("test"))
    assert {row["controller"] for row in rows} == {"performance", "powersave"}
    assert [p.name for p in here.iterdir()] == ["rows.csv"]


def test_a_chip_of_ones_own_is_used_by_its_path(run_cli, trace_folder, here):
    (here / "mine.toml").write_text(CHIP.read_text().replace("int4 = 0.10e-12", "int4 = 1.90e-12"))
    arguments = ("evaluate", "performance", "--traces", trace_folder, "--no-oracle", "--json")
    shipped = rows_of(run_cli(*arguments).json)["performance"]
    mine = rows_of(run_cli(*arguments, "--chip", "mine.toml").json)["performance"]
    assert mine["energy_per_token_j"] > 1.2 * shipped["energy_per_token_j"]
    assert mine["tpot_p50_s"] == pytest.approx(shipped["tpot_p50_s"], rel=0.05)


def test_a_chip_file_is_read_again_after_it_was_edited(run_cli, trace_folder, here):
    energies = []
    for energy in ("0.10e-12", "1.90e-12"):
        (here / "edited.toml").write_text(CHIP.read_text().replace("int4 = 0.10e-12", f"int4 = {energy}"))
        done = run_cli(
            "evaluate", "performance", "--traces", trace_folder, "--chip", here / "edited.toml", "--no-oracle", "--json"
        )
        energies.append(rows_of(done.json)["performance"]["energy_per_token_j"])
    assert energies[1] > 1.2 * energies[0]


def test_limits_decide_who_is_within_them(run_cli, trace_folder):
    arguments = ("evaluate", "powersave", "--traces", trace_folder, "--no-oracle", "--json")
    missed = rows_of(run_cli(*arguments).json)["powersave"]
    assert missed["miss_rate"] > 0.01
    assert not missed["within_constraints"]
    assert rows_of(run_cli(*arguments, "--max-miss", "1").json)["powersave"]["within_constraints"]


def test_generate_answers_a_prompt(run_cli, snapshot):
    (answer,) = run_cli("generate", "--prompt", "Once upon a time", *QUICK, "--json").json["generations"]
    assert answer["prompt"] == "Once upon a time"
    assert answer["controller"] == "performance"
    assert answer["text"]
    assert 1 <= answer["tokens"] <= 6
    assert answer["mean_depth"] == load_model().shape.layers
    assert answer["agreement"] == 1
    assert answer["energy_per_token_j"] > 0
    assert answer["ttft_s"] > 0
    assert snapshot() == {}


def test_generate_for_people_shows_text_and_figures(run_cli):
    done = run_cli("generate", "--prompt", "Once upon a time", *QUICK)
    assert done.code == 0
    assert done.out.startswith("Once upon a time")
    assert "uJ/token" in done.out
    assert "mean depth 10.00" in done.out
    assert "TTFT" in done.out


def test_generate_answers_every_prompt_of_a_file_with_seeds_of_their_own(run_cli, here):
    (here / "prompts.txt").write_text("Once upon a time\n\nOnce upon a time\n")
    both = run_cli("generate", "--prompt-file", "prompts.txt", *QUICK, "--seed", "5", "--json").json["generations"]
    assert [a["prompt"] for a in both] == ["Once upon a time"] * 2
    alone = [
        run_cli("generate", "--prompt", "Once upon a time", *QUICK, "--seed", s, "--json").json["generations"][0]
        for s in (5, 6)
    ]
    assert both == alone


def test_generate_runs_the_shipped_policy_by_default(run_cli):
    arguments = ("generate", "--prompt", "Once upon a time", "--max-new-tokens", "6", "--temperature", "0", "--json")
    (answer,) = run_cli(*arguments).json["generations"]
    assert answer["controller"] == "default"
    assert 1 <= answer["mean_depth"] <= load_model().shape.layers
    (again,) = run_cli(*arguments).json["generations"]
    assert again == answer


@pytest.mark.parametrize("level", ["chatbot", "code"])
def test_generate_keeps_to_the_service_level_that_was_asked_for(run_cli, level):
    for seed in range(4):
        done = run_cli("generate", "--prompt", "Hi", *QUICK, "--slo", level, "--seed", seed, "--json")
        assert done.json["generations"][0]["slo"] == level


def test_a_service_level_by_name_holds_as_it_is_and_is_shown(run_cli, here):
    titles = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("clone_rl.evaluation.figure.draw_response", lambda *arguments: titles.append(arguments[-1]))
        for seed in range(3):
            asked = ("generate", "--prompt", "Hi", *QUICK, "--slo", "smart-reply", "--seed", seed, "--picture", "p.png")
            (answer,) = run_cli(*asked, "--json").json["generations"]
            assert answer["targets"] == {"ttft_s": 12e-3, "tpot_s": 0.25e-3}
    assert "(smart-reply: TTFT 12 ms, TPOT 0.25 ms)" in run_cli(*asked).out
    assert all("smart-reply: TTFT 12 ms, TPOT 0.25 ms" in title for title in titles) and len(titles) == 3


def test_what_was_drawn_is_shown_with_its_slack(run_cli):
    levels = {level.name: level for level in Scenario.load("default").slo}
    (answer,) = run_cli("generate", "--prompt", "Hi", *QUICK, "--seed", "3", "--json").json["generations"]
    level, shown = levels[answer["slo"]], answer["targets"]
    slack = shown["ttft_s"] / level.ttft_s
    assert 1.0 < slack < 2.0 and slack == pytest.approx(shown["tpot_s"] / level.tpot_s)
    said = run_cli("generate", "--prompt", "Hi", *QUICK, "--seed", "3").out
    assert f"({level.name}: TTFT {shown['ttft_s'] * 1e3:.4g} ms, TPOT {shown['tpot_s'] * 1e3:.4g} ms)" in said


def test_generate_can_draw_from_all_tokens(run_cli):
    asked = ("generate", "--prompt", "Once upon a time", "--max-new-tokens", "8", "--temperature", "3", "--json")
    texts = {k: run_cli(*asked, "--top-k", k).json["generations"][0]["text"] for k in (0, -1, 1, 40)}
    assert texts[0] == texts[-1] and len(set(texts.values())) == 3


def test_generate_draws_the_first_response(run_cli, here):
    (here / "prompts.txt").write_text("Once\nTwice\n")
    assert run_cli("generate", "--prompt-file", "prompts.txt", *QUICK, "--picture", "p.png").code == 0
    assert (here / "p.png").read_bytes().startswith(b"\x89PNG")
    assert {p.name for p in here.iterdir()} == {"prompts.txt", "p.png"}


def test_records_of_ones_own_prompts_can_be_evaluated(run_cli, here):
    rows = [{"prompt": "2 + 2 =", "answer": " 4."}, {"prompt": "Once upon a time"}]
    (here / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done = run_cli("record", "--prompt-file", "prompts.jsonl", "--out", "mine", "--max-new-tokens", "5", "--json")
    result = done.json
    assert (result["out"], result["requests"]) == ("mine", 2)
    traces = load_traces(str(here / "mine"))
    assert result["tokens"] == traces.offset[-1]
    assert traces.sampled.tolist() == [0, 1]
    assert traces.card["model_sha256"] == result["card"]["model_sha256"] == load_model().sha256
    assert result["agreement"] == pytest.approx(traces.agree.mean(0), abs=1e-4)
    assert {p.name for p in here.iterdir()} == {"prompts.jsonl", "mine"}
    evaluation = run_cli("evaluate", "performance", "--traces", "mine", "--no-oracle", "--json").json
    assert rows_of(evaluation)["performance"]["mean_depth"] == 10


def test_records_of_the_shipped_prompts_take_some_of_every_kind_and_split(run_cli, here):
    counts = ("--train", "1", "--validation", "0", "--test", "2")
    result = run_cli("record", "--out", "few", *counts, "--max-new-tokens", "3", "--json").json
    assert result["requests"] == 12
    traces = load_traces(str(here / "few"))
    assert [(traces.split == s).sum() for s in range(3)] == [4, 0, 8]
    assert sorted(traces.kinds) == ["arithmetic", "list", "question", "story"]


def test_a_model_folder_is_used_by_its_path(run_cli, here):
    shutil.copytree(Path(clone_rl.llm.__file__).parent / "embedded", here / "model")
    arguments = ("generate", "--prompt", "Once", *QUICK, "--json")
    assert run_cli(*arguments, "--model", "model").json == run_cli(*arguments).json


def test_the_installed_command_prints_one_object_and_nothing_else(trace_folder, tmp_path):
    command = [
        Path(sys.executable).with_name("clone-rl"),
        "evaluate",
        "performance",
        "--traces",
        trace_folder,
        "--no-oracle",
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert rows_of(json.loads(done.stdout))["performance"]["mean_depth"] == 10
    assert done.stderr == ""
    command[2] = "performanc"
    failed = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (failed.returncode, failed.stdout) == (2, "")
    assert json.loads(failed.stderr)["error"]["hint"].startswith("did you mean 'performance'?")
    assert not list(tmp_path.iterdir())
