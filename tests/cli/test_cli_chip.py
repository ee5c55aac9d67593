import json
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

import clone_rl.hw_emulator
from clone_rl.cli.main import main
from clone_rl.cli.text import aligned, plain, quantity
from clone_rl.evaluation.chip_figure import spread
from clone_rl.hw_emulator import Emulator, Workload, chip_names, load_chip, shape_names
from clone_rl.hw_emulator.emulator import TERMS
from clone_rl.hw_emulator.report import describe, knee, request_costs
from clone_rl.hw_emulator.roofline import place, roofs
from clone_rl.hw_emulator.validation import Check, Fitted

pytest_plugins = ["cli_running"]

CHIPS = Path(clone_rl.hw_emulator.__file__).parent / "chips"
EMBEDDED = CHIPS.parent.parent / "llm" / "embedded"


@pytest.fixture
def embedded():
    """The embedded model loaded for a prompt of 20 and 5 tokens."""
    return Emulator(load_chip("asic28-sram"), Workload.from_config(EMBEDDED), context=25)


def points_of(run_cli, *arguments):
    result = run_cli("chip", "cost", "--prompt", "20", "--tokens", "5", "--json", *arguments).json
    return {point["point"]: point for point in result["points"]}


def test_list_names_every_chip(run_cli, snapshot):
    chips = {chip["name"]: chip for chip in run_cli("chip", "list", "--json").json["chips"]}
    assert list(chips) == chip_names()
    sram, board = chips["asic28-sram"], chips["orin-agx"]
    assert (sram["kind"], sram["points"], sram["sram_bytes"], sram["dram_bytes_per_s"]) == ("asic", 8, 8388608, None)
    assert (sram["peak_ops_per_s"], sram["peak_format"], sram["limit_w"]) == (2 * 128 * 500e6, "int4", 0.5)
    assert sram["area_mm2"] == load_chip("asic28-sram").area_mm2
    assert (board["kind"], board["sram_bytes"], board["area_mm2"]) == ("board", None, None)
    shown = run_cli("chip", "list").out
    assert all(f"{name}: {load_chip(name).description}" in shown for name in chips)
    assert "0.56-1.00" in shown
    assert "20.96" in shown
    assert snapshot() == {}


@pytest.mark.parametrize("name", chip_names())
def test_show_gives_derived_figures(run_cli, name):
    chip, shown = load_chip(name), run_cli("chip", "show", name, "--json").json
    emulator = Emulator(chip, Workload.from_config(EMBEDDED, "int8", layers=2), context=1)
    points = shown["operating_points"]
    assert [p["voltage_v"] for p in points] == [p.voltage_v for p in chip.operating_points]
    assert [p["dynamic_scale"] for p in points] == pytest.approx(emulator.points["dynamic_scale"])
    assert all(p["leakage_at_85c_w"] > p["leakage_at_25c_w"] > 0 for p in points)
    up, down = shown["switching"]["changes"]["lowest_to_highest"], shown["switching"]["changes"]["highest_to_lowest"]
    assert (up["stall_s"], up["energy_j"]) == emulator.switch(0, emulator.top)
    assert up["stall_s"] > down["stall_s"]
    assert shown["thermal"]["throttle_c"] == chip.thermal.throttle_c
    assert shown["limit_w"] == chip.limit_w


def test_show_describes_the_parts_of_an_asic(run_cli):
    chip, shown = load_chip("asic28-lpddr4"), run_cli("chip", "show", "asic28-lpddr4", "--json").json
    area = shown["area"]
    assert area["area_mm2"] == chip.area_mm2
    assert area["logic_area_mm2"] + area["sram_area_mm2"] + area["lora_unit_area_mm2"] == pytest.approx(chip.area_mm2)
    assert shown["peak_ops_per_s"]["int4"] == 2 * 2048 * 500e6
    assert shown["peak_ops_per_s"]["fp16"] == 2 * 256 * 500e6
    assert shown["sram"]["top_bytes_per_s"] == 2048 * 500e6
    assert shown["dram"]["read_j_per_bit"] == pytest.approx(10.5e-12)
    assert shown["regulator"]["efficiency_at_lowest"] == pytest.approx(0.85)
    states = shown["idle_states"]
    assert states["clock-gated"]["power_w"] > states["retention"]["power_w"] > states["off"]["power_w"]
    # Leakage at the reference temperature is what the emulator charges.
    emulator = Emulator(chip, Workload.from_config("smollm2-135m"))
    assert [p["leakage_at_25c_w"] for p in shown["operating_points"]] == pytest.approx(emulator.points["leakage_w"])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("asic28-sram", ["20.96 mm2", "x 1.452", "650 fJ/B", "retention", "up to highest", "switched-capacitor", "160 s"]),
        ("asic28-lpddr4", ["10.5", "pJ/bit", "self-refresh", "12.8 GB/s", "off:"]),
        ("orin-agx", ["MAC/cycle", "static at 85 C", "devfreq", "laws of the whole board"]),
    ],
)
def test_show_for_people_names_them_with_units(run_cli, name, words):
    done = run_cli("chip", "show", name)
    assert done.code == 0
    assert all(word in done.out for word in words)
    assert max(map(len, done.out.splitlines())) <= 115


def test_an_ldo_is_less_efficient_at_a_low_voltage(run_cli, here):
    text = (CHIPS / "asic28-sram.toml").read_text().replace('regulator = "switched-capacitor"', 'regulator = "ldo"')
    (here / "mine.toml").write_text(text)
    regulator = run_cli("chip", "show", "mine.toml", "--json").json["regulator"]
    assert regulator["efficiency_at_lowest"] == pytest.approx(0.56 / 1.1 * 0.99)
    assert regulator["efficiency_at_highest"] == pytest.approx(1.0 / 1.1 * 0.99)
    assert "from 1.1 V, efficiency 50%" in run_cli("chip", "show", "mine.toml").out


def test_cost_is_the_emulators(run_cli, embedded):
    for k, point in points_of(run_cli).items():
        prefill = embedded.token("prefill", tokens=20, vf=k)
        steps = [embedded.token(context=c, vf=k) for c in range(21, 26)]
        assert point["ttft_s"] == prefill.latency_s
        assert point["tpot_s"] == pytest.approx(sum(step.latency_s for step in steps) / 5, rel=1e-12)
        assert point["energy_per_token_j"] == pytest.approx(sum(step.energy_j for step in steps) / 5, rel=1e-12)
        assert point["request_j"] == pytest.approx(prefill.energy_j + sum(step.energy_j for step in steps), rel=1e-12)
        assert point["power_w"] == pytest.approx(point["request_j"] / point["request_s"])
        assert sum(point["decode_per_token"][term] for term in TERMS) == pytest.approx(point["energy_per_token_j"])
        assert point["prefill"]["mac_j"] == prefill.mac_j
        assert point["steady_die_c"] > 25
        assert not point["over_limit"]
        assert not point["throttled"]


def test_cost_of_an_early_exit_fills_the_other_caches(run_cli, embedded):
    for k, point in points_of(run_cli, "--exit-layer", "4", "--vf", "6,1").items():
        assert k in (1, 6)
        steps = [embedded.token(context=c, vf=k, depth=4).energy_j for c in range(21, 26)]
        assert point["energy_per_token_j"] == pytest.approx(sum(steps) / 5, rel=1e-12)
        assert point["ttft_s"] == embedded.token("prefill", tokens=20, vf=k).latency_s


def test_temperature_changes_leakage_and_nothing_else(run_cli):
    cold, hot = points_of(run_cli, "--vf", "3")[3], points_of(run_cli, "--vf", "3", "--temperature", "85")[3]
    growth = hot["decode_per_token"]["leakage_j"] / cold["decode_per_token"]["leakage_j"]
    assert growth == pytest.approx(2.718281828 ** (0.032 * 60))
    assert hot["tpot_s"] == cold["tpot_s"]
    assert hot["decode_per_token"]["mac_j"] == cold["decode_per_token"]["mac_j"]
    assert hot["steady_die_c"] == cold["steady_die_c"]


def test_switching_and_adapters_change_their_own_figures(run_cli):
    plain_point, slow = points_of(run_cli)[7], points_of(run_cli, "--switching", "pmic")[7]
    assert slow["switch_from_below_s"] == pytest.approx(30e-6 + 0.04 / 27.5e3)
    assert slow["ttft_s"] == plain_point["ttft_s"]
    arguments = ("chip", "cost", "--prompt", "20", "--tokens", "5", "--lora-rank", "8", "--lora-targets", "q,v", "--json")
    adapted = run_cli(*arguments).json
    assert adapted["points"][7]["decode_per_token"]["lpu_j"] > 0
    assert adapted["placement"]["adapters"] == "LoRA buffer"
    assert adapted["placement"]["adapter_bytes"] == 10 * 8 * (256 + 256 + 256 + 128)
    assert adapted["points"][0]["switch_from_below_s"] is None


def test_cost_says_what_is_resident_and_what_streams(run_cli):
    whole = run_cli("chip", "cost", "--json").json["placement"]
    assert (whole["resident_share"], whole["dram_bytes_per_token"]) == (1, 0)
    assert whole["kv_positions_in_sram"] == 192
    arguments = ("chip", "cost", "--chip", "asic28-lpddr4", "--model", "llama-3.2-1b")
    streamed = run_cli(*arguments, "--json").json["placement"]
    assert streamed["resident_share"] < 0.01
    assert streamed["streamed_weight_bytes_per_token"] == pytest.approx(streamed["weight_bytes"], rel=0.01)
    shown = run_cli(*arguments).out
    assert "0.101% of the weights (743.5 MiB), all of the K/V cache (3 MiB for 192 positions)" in shown
    assert "778.8 MB per token" in shown
    long = run_cli(*arguments, "--prompt", "2000", "--vf", "7", "--json").json["placement"]
    assert 0 < long["kv_positions_in_sram"] < 2064
    assert long["dram_bytes_per_token"] > long["streamed_weight_bytes_per_token"]
    assert "none of the K/V cache" in run_cli("chip", "cost", "--chip", "orin-agx", "--model", "llama-3.1-8b").out


def test_the_minimum_and_the_knee_are_marked(run_cli):
    result = run_cli("chip", "cost", "--json").json
    energies = [p["energy_per_token_j"] for p in result["points"]]
    assert result["minimum_energy_point"] == energies.index(min(energies)) == 2
    assert result["minimum_energy_point"] < result["knee_point"] < 7
    lines = run_cli("chip", "cost").out.splitlines()
    (least,), (bend,) = ([line for line in lines if line.endswith(end)] for end in ("least energy", "knee"))
    assert (least.split()[0], bend.split()[0]) == ("2", str(result["knee_point"]))
    assert run_cli("chip", "cost", "--vf", "2", "--json").json["knee_point"] is None


def test_a_knee_is_the_farthest_point_from_the_chord():
    assert knee([10, 5, 4, 1], [1.0, 1.1, 1.2, 10.0]) == 2
    # The third is beaten in both.
    assert knee([10, 5, 11, 1], [1.0, 1.1, 1.05, 10.0]) == 1
    assert knee([1.0], [1.0]) is None
    assert knee([3, 2, 1], [3, 2, 1]) is None


def test_points_beyond_the_limits_of_a_chip_are_flagged(run_cli, here):
    text = (CHIPS / "asic28-sram.toml").read_text()
    text = text.replace("limit_w = 0.5", "limit_w = 0.01").replace(
        "package_resistance_k_per_w = 20.0", "package_resistance_k_per_w = 3000.0"
    )
    (here / "hot.toml").write_text(text)
    result = run_cli("chip", "cost", "--chip", "hot.toml", "--json").json
    low, high = result["points"][0], result["points"][-1]
    assert (low["over_limit"], low["throttled"]) == (False, False)
    assert high["over_limit"]
    assert high["throttled"]
    assert high["highest_allowed_point"] < 7
    shown = run_cli("chip", "cost", "--chip", "hot.toml").out
    assert "OVER LIMIT" in shown
    assert "THROTTLED to 0" in shown


@pytest.mark.parametrize("source", ["default", EMBEDDED, EMBEDDED / "config.json"])
def test_the_embedded_model_is_found_by_name_folder_and_file(run_cli, source):
    assert points_of(run_cli, "--model", source) == points_of(run_cli)


@pytest.mark.parametrize("name", shape_names())
def test_every_shipped_shape_can_be_costed(run_cli, name):
    done = run_cli("chip", "cost", "--chip", "asic28-lpddr4", "--model", name, "--vf", "0,7", "--tokens", "2")
    assert done.code == 0
    assert done.out.startswith(f"{name} at int4 on asic28-lpddr4")
    assert max(map(len, done.out.splitlines())) <= 115


def test_a_long_response_is_costed_in_pieces(monkeypatch):
    emulator = Emulator(load_chip("asic28-lpddr4"), Workload.from_config("smollm2-135m"), context=110)
    (whole,) = request_costs(emulator, 10, 100, [3])
    monkeypatch.setattr("clone_rl.hw_emulator.report._CHUNK", 7)
    (pieces,) = request_costs(emulator, 10, 100, [3])
    assert pieces.decode.energy_j == pytest.approx(whole.decode.energy_j, rel=1e-12)


PICTURES = [
    ("asic28-sram", "default", ()),
    ("asic28-sram", "default", ("--vf", "3", "--lora-rank", "8")),
    ("asic28-lpddr4", "llama-3.2-1b", ("--lora-rank", "4", "--prompt", "2000")),
    ("orin-agx", "llama-3.1-8b", ("--lora-rank", "4")),
    ("orin-nano", "windows.json", ()),
]


@pytest.mark.parametrize(("chip", "model", "more"), PICTURES)
def test_cost_draws_a_picture(run_cli, here, chip, model, more):
    config = {"model_type": "gemma2", "num_hidden_layers": 4, "hidden_size": 512, "num_attention_heads": 4,
              "intermediate_size": 1024, "vocab_size": 999, "sliding_window": 64, "max_position_embeddings": 4096}  # fmt: skip
    (here / "windows.json").write_text(json.dumps(config))
    done = run_cli("chip", "cost", "--chip", chip, "--model", model, *more, "--plot", "p.png")
    assert done.code == 0
    assert done.out.endswith("picture: p.png\n")
    content = (here / "p.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert len(content) > 30_000


def test_scale_draws_a_picture(run_cli, here):
    assert run_cli("chip", "scale", "asic28-sram", "--plot", "p.png", "--json").json["plot"] == "p.png"
    assert len((here / "p.png").read_bytes()) > 15_000


def test_labels_of_close_points_are_spread():
    places = spread([0.1, 0.11, 0.12, 0.98, 1.0], 0.05)
    assert all(b - a >= 0.05 - 1e-12 for a, b in pairwise(places))
    assert places[0] == 0.1
    assert places[-1] == 1.0


@pytest.mark.parametrize(
    ("chip", "model"), [("asic28-sram", "embedded"), ("asic28-lpddr4", "llama-3.2-1b"), ("orin-agx", "llama-3.1-8b")]
)
@pytest.mark.parametrize("rank", [0, 8])
def test_nothing_runs_above_its_roof(chip, model, rank):
    workload = Workload.from_config(EMBEDDED if model == "embedded" else model, lora_rank=rank)
    emulator = Emulator(load_chip(chip), workload, context=192)
    ends = (0, emulator.top)
    bounds = {roof.point: roof for roof in roofs(emulator, ends)}
    placed = place(emulator, 128, 192, ends)
    assert {p.piece for p in placed} == {"projections", "attention", "head"} | ({"LoRA"} if rank else set())
    for p in placed:
        roof = bounds[p.point]
        assert p.macs_per_s <= max(roof.macs_per_s.values())
        if p.memory in roof.bytes_per_s:
            assert p.macs_per_s <= p.macs_per_byte * roof.bytes_per_s[p.memory] * (1 + 1e-9)
    decode = next(p for p in placed if (p.piece, p.phase) == ("projections", "decode"))
    prefill = next(p for p in placed if (p.piece, p.phase) == ("projections", "prefill"))
    assert 1 < decode.macs_per_byte < 2 < 50 < prefill.macs_per_byte


def test_scale_changes_logic_and_leaves_sram(run_cli):
    result = run_cli("chip", "scale", "asic28-sram", "--tiles", "1,2,8", "--vf", "3", "--json").json
    one, two, eight = result["rows"]
    assert [row["tiles"] for row in result["rows"]] == [1, 2, 8]
    assert one["logic_area_mm2"] < two["logic_area_mm2"] < eight["logic_area_mm2"]
    assert one["sram_area_mm2"] == eight["sram_area_mm2"]
    assert one["peak_ops_per_s"] * 8 == eight["peak_ops_per_s"]
    assert one["latency_s"] > two["latency_s"] > eight["latency_s"]
    assert one["leakage_w"] < eight["leakage_w"]
    shipped = {p["point"]: p for p in run_cli("chip", "cost", "--json").json["points"]}
    assert two["energy_j"] == pytest.approx(shipped[3]["energy_per_token_j"])
    assert two["power_w"] == pytest.approx(shipped[3]["decode_power_w"])
    assert (two["best_point"], two["best_energy_j"]) == (2, pytest.approx(shipped[2]["energy_per_token_j"]))
    done = run_cli("chip", "scale", "asic28-sram", "--tiles", "1,2,8", "--vf", "3")
    assert "point 3, 0.72 V, 260 MHz" in done.out
    assert len(done.out.strip().splitlines()) == 3 + 2 + 3


CHECKS = [
    Check("V1 cycles", 10.0, 10.0, "exact", True, "SCALE-Sim", 0.0, True),
    Check("V2 clock", "612-816", 714.0, "1 clock", True, "EnergyLLM"),
    Check("V3 broken", 1.0, float("nan"), "3 %", False, "GenZ", float("nan")),
]


@pytest.mark.parametrize(("checks", "code"), [(CHECKS, 1), (CHECKS[:2], 0)])
def test_validate_exits_with_1_if_a_check_fails(run_cli, monkeypatch, checks, code):
    monkeypatch.setattr("clone_rl.hw_emulator.validation.validate", lambda _: checks)
    done = run_cli("chip", "validate")
    assert done.code == code
    assert ("FAIL" in done.out) == (code == 1)
    assert "held out" in done.out
    assert f"{2} of {len(checks)} within tolerance" in done.out
    as_json = run_cli("chip", "validate", "--json")
    assert as_json.code == code
    found = json.loads(as_json.out)
    assert list(found) == ["checks"]
    assert [check["pass"] for check in found["checks"]] == [check.passed for check in checks]
    assert {"id", "reference", "ours", "tolerance", "pass", "source"} <= set(found["checks"][0])
    if code:
        assert found["checks"][2]["ours"] is None


def test_validate_and_fit_pass_the_folder_on(run_cli, monkeypatch, here):
    seen = []
    monkeypatch.setattr("clone_rl.hw_emulator.validation.validate", lambda reference: seen.append(reference) or CHECKS[:1])
    constant = Fitted("chip key", 1.25, 1.2, 7, "somebody")
    monkeypatch.setattr("clone_rl.hw_emulator.validation.fit", lambda reference: seen.append(reference) or [constant])
    (here / "table.csv").write_text("a\n1\n", encoding="utf-8")
    run_cli("chip", "validate", "--reference", here)
    run_cli("chip", "fit", "--reference", here)
    assert run_cli("chip", "fit", "--json").json["constants"][0]["shipped"] == 1.2
    assert re.search(r"chip key +1.25 +1.2 +-4.0% +7 +somebody", run_cli("chip", "fit").out)
    assert seen == [here, here, None, None]
    (here / "table.csv").unlink()
    assert "no reference table" in run_cli("chip", "validate", "--reference", here).err


BAD = [
    (("show", "asic28-srm"), "unknown_name", "unknown chip 'asic28-srm'", "did you mean 'asic28-sram'?"),
    (("show", "none.toml"), "bad_file", "none.toml", ""),
    (("show", "broken.toml"), "bad_file", "broken.toml", ""),
    (("cost", "--chip", "zzz"), "unknown_name", "unknown chip 'zzz'", "known: asic28-lpddr4, asic28-sram"),
    (("cost", "--prompt", "0"), "bad_value", "prompt is 0", "at least 1"),
    (("cost", "--tokens", "0"), "bad_value", "tokens is 0", "at least 1"),
    (("cost", "--tokens", "many"), "bad_value", "invalid int value: 'many'", "clone-rl chip cost --help"),
    (("cost", "--prompt", "200"), "bad_value", "264 positions", "context of default is 256"),
    (("cost", "--vf", "8"), "bad_value", "operating point 8", "points 0 to 7"),
    (("cost", "--vf", "-1"), "bad_value", "operating point -1", "points 0 to 7"),
    (("cost", "--vf", "top"), "bad_value", "vf is 'top'", "whole numbers"),
    (("cost", "--vf", "1,,2"), "bad_value", "vf is '1,,2'", "whole numbers"),
    (("cost", "--exit-layer", "11"), "bad_value", "exit layer 11", "1 to 10"),
    (("cost", "--exit-layer", "-1"), "bad_value", "exit layer -1", "1 to 10"),
    (("cost", "--temperature", "1e6"), "bad_value", "temperature is 1000000.0", "-55 to 150"),
    (("cost", "--temperature", "nan"), "bad_value", "temperature is nan", "-55 to 150"),
    (("cost", "--switching", "pmc"), "unknown_name", "'pmc'", "did you mean 'pmic'?"),
    (("cost", "--precision", "int5"), "unknown_name", "unknown precision 'int5'", "int"),
    (("cost", "--precision", "fp32"), "bad_value", "33.9 MiB at fp32", "fewer weight bits"),
    (("cost", "--model", "llama-3.2-1b"), "bad_value", "llama-3.2-1b needs", "[dram]"),
    (("cost", "--model", "lama-3.2-1b"), "unknown_name", "unknown model 'lama-3.2-1b'", "did you mean 'llama-3.2-1b'?"),
    (("cost", "--model", "none.json"), "bad_file", "none.json", ""),
    (("cost", "--lora-rank", "-1"), "bad_value", "lora_rank is -1", ""),
    (("cost", "--lora-rank", "4", "--lora-targets", "q,x"), "unknown_name", "unknown LoRA target 'x'", "query"),
    (("cost", "--lora-rank", "900"), "bad_value", "eNVM of asic28-sram", "lora_rank"),
    (("cost", "--chip", "orin-agx", "--precision", "fp8"), "bad_value", "orin-agx has no measured fp8", "int4"),
    (("cost", "--plot", "p.jpg"), "bad_value", "p.jpg", "PNG"),
    (("cost", "--plot", "none/p.png"), "bad_file", "none", "create it"),
    (("cost", "--plot", "broken.toml"), "bad_file", "broken.toml exists", "choose another"),
    (("scale", "orin-agx"), "bad_value", "orin-agx is a board", "ASIC"),
    (("scale", "asic28-sram", "--tiles", "0"), "bad_value", "tiles is 0", "at least 1"),
    (("scale", "asic28-sram", "--tiles", "x"), "bad_value", "tiles is 'x'", "whole numbers"),
    (("scale", "asic28-sram", "--tiles", "1,1000"), "bad_value", "1000 tiles need", "fewer tiles"),
    (("scale", "asic28-sram", "--vf", "8"), "bad_value", "operating point 8", "points 0 to 7"),
    (("scale", "asic28-sram", "--plot", "p"), "bad_value", "plot p", "PNG"),
    (("validate", "--reference", "none"), "bad_file", "none", ""),
    (("fit", "--reference", "none"), "bad_file", "none", ""),
    ((), "bad_value", "ACTION", "clone-rl chip --help"),
    (("lst",), "bad_value", "invalid choice: 'lst'", "clone-rl chip --help"),
]


@pytest.mark.parametrize(("arguments", "kind", "message", "hint"), BAD)
def test_bad_input_is_a_named_error(run_cli, here, snapshot, arguments, kind, message, hint):
    (here / "broken.toml").write_text("name = [")
    before = snapshot()
    done = run_cli("chip", *arguments)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert hint in done.err
    assert "Traceback" not in done.err
    error = run_cli("chip", *arguments, "--json").error
    assert error["kind"] == kind
    assert message in error["message"]
    assert hint in error["hint"]
    assert snapshot() == before


SAYS = {
    "list": [],
    "show": ["shipped chip or TOML file"],
    "cost": ["decode steps", "Celsius", "PNG", "config.json", "ideal, on-chip, pmic, os or devfreq"],
    "scale": ["numbers of tiles", "PNG"],
    "validate": ["exit code 1", "reference tables"],
    "fit": ["reference tables"],
}


@pytest.mark.parametrize("action", SAYS)
def test_help_of_every_action_names_its_defaults(run_cli, capsys, action):
    with pytest.raises(SystemExit) as caught:
        run_cli("chip", action, "--help")
    assert caught.value.code == 0
    out = capsys.readouterr().out
    text = re.sub(r"\s+", " ", out)
    assert all(words in text for words in SAYS[action])
    entries = re.findall(r"^  (--[\w-]+) ([A-Z_]+)\s(.*?)(?=^  -|\Z)", out, re.M | re.S)
    assert not [name for name, _, words in entries if "default:" not in re.sub(r"\s+", " ", words)]


def test_chip_commands_do_not_need_torch():
    code = (
        "import sys; from clone_rl.cli.main import main\nassert main(sys.argv[1:]) == 0\nassert 'torch' not in sys.modules\n"
        "assert 'matplotlib' not in sys.modules"
    )
    for arguments in (["list"], ["cost", "--vf", "0"]):
        subprocess.run([sys.executable, "-c", code, "chip", *arguments], capture_output=True, check=True)


def test_json_holds_no_nan():
    assert plain({"a": [float("nan"), 1.0], "b": (float("inf"), "x", None, 3)}) == {
        "a": [None, 1.0],
        "b": [None, "x", None, 3],
    }


def test_columns_share_a_unit_where_they_are_compared():
    columns = [("a", "J", [1e-6]), ("b", "J", [2e-3]), ("c", "s", [5e-4])]
    assert aligned(columns).splitlines()[-1].split() == ["1", "2", "500"]
    assert aligned(columns, together="J").splitlines()[-1].split() == ["0.001", "2", "500"]
    assert quantity(-3e-7, "V") == "-300 nV"


def test_descriptions_are_plain_data():
    for name in chip_names():
        json.dumps(describe(load_chip(name)), allow_nan=False)


def test_the_exit_code_of_a_judging_command_is_mains(monkeypatch, capsys):
    monkeypatch.setattr("clone_rl.hw_emulator.validation.validate", lambda _: CHECKS)
    monkeypatch.setattr(sys, "argv", ["clone-rl"])
    assert main(["chip", "validate", "--json"]) == 1
    assert "code" not in json.loads(capsys.readouterr().out)


def test_a_reader_that_leaves_early_is_no_error():
    command = f"{sys.executable} -m clone_rl.cli.main chip validate | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)
    assert done.returncode in (1, 141)  # 1: everything was written before the reader left
    assert done.stderr == ""


# Chip files of strangers.


def chip_file(here, old, new, name="asic28-sram"):
    text = (CHIPS / f"{name}.toml").read_text(encoding="utf-8")
    assert re.search(old, text, re.MULTILINE), old
    (here / "my-chip.toml").write_text(re.sub(old, new, text, flags=re.MULTILINE), encoding="utf-8")
    return "my-chip.toml"


MILLIVOLTS = r"^voltage_v = 0\.(\d\d)$", r"voltage_v = \g<1>0"
MEGAHERTZ = r"^frequency_hz = (\d+)e6$", r"frequency_hz = \1"


@pytest.mark.parametrize(
    ("slip", "message", "hint"),
    [
        (MILLIVOLTS, "operating_points[0]: voltage_v is 560.0", "volts, 0.1 to 2; is it in millivolts?"),
        (MEGAHERTZ, "operating_points[0]: frequency_hz is 50.0", "hertz, 5e+06 to 1e+10; is it in megahertz?"),
    ],
    ids=["millivolts", "megahertz"],
)
@pytest.mark.parametrize(
    "command",
    [
        ("chip", "show", "{}"), ("chip", "cost", "--chip", "{}"), ("chip", "scale", "{}"),
        ("evaluate", "performance", "--chip", "{}", "--seeds", "1", "--requests", "2"),
    ],
    ids=lambda command: " ".join(command[:2]),
)  # fmt: skip
def test_a_chip_in_other_units_is_refused_by_every_command(run_cli, here, command, slip, message, hint):
    path = chip_file(here, *slip)
    done = run_cli(*(part.format(path) for part in command), "--json")
    assert done.code == 2
    assert done.error["message"] == f"{path}: {message}"
    assert done.error["hint"] == hint


TWICE = 2 * "[[operating_points]]\nvoltage_v = 0.60\nfrequency_hz = 109e6\n"
POINT = r"\[\[operating_points\]\]\nvoltage_v = 0\.60\nfrequency_hz = 109e6\n"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (r"^\[compute\]$", '[compute]\nsparsity = "2:4"'), (r"^tiles = 2", "tiles = [2]"), (r"^tiles = 2", "tiles = inf"),
        (r"^tiles = 2", "tiles = 0"), (r"^\[power\][^[]*", "power = 0.5\n"), (r"^\[thermal\][^[]*", ""),
        (r"^\[sram\][^[]*", "[[sram]]\n"), (r"^limit_w = 0\.5", "limit_w = -inf"), (r"^limit_w = 0\.5", 'limit_w = "0.5 W"'),
        (r"^limit_w = 0\.5", "limit_w = 1979-05-27"), (r"^name = .*", "name = 5"), (r"^name = .*", ""),
        (POINT, ""), (POINT, "[[operating_points]]\n"), (POINT, TWICE),
        (r"frequency_hz = 109e6", "frequency_hz = 600e6"), (r"voltage_v = 0\.60", "voltage_v = 0.70"),
        (r"\[\[operating_points\]\](.|\n)*", "operating_points = []\n"), (r"(.|\n)*", ""),
        (r"^mechanism = .*", "mechanism = []"),
        (r"^int4 = 1\.0", "int4 = nan"), (r"^int4 = 1\.0", "int4 = 1e300"), (r"^throttle_c = 85\.0", "throttle_c = 20.0"),
    ],
    ids=lambda text: text[:24].encode("unicode_escape").decode(),
)  # fmt: skip
def test_a_malformed_chip_file_gets_one_sentence_and_no_traceback(run_cli, here, old, new):
    path = chip_file(here, old, new)
    done = run_cli("chip", "show", path, "--json")
    if old == POINT and not new:
        assert done.code == 0  # one point fewer is a chip, too
        return
    assert done.code == 2
    assert path in done.error["message"]
    assert "\n" not in done.error["message"]
    assert done.error["hint"]


def test_a_copy_with_other_tiles_does_not_say_what_the_original_had(run_cli, here):
    shown = run_cli("chip", "show", chip_file(here, r"^tiles = 2", "tiles = 8")).out
    assert "8 tiles of 8 x 8" in shown
    assert "128 INT4" not in shown
