import json
import os
from pathlib import Path

import pytest

from clone_rl.errors import BadFileError
from clone_rl.hw_emulator import asic, board, chip
from clone_rl.hw_emulator.validation import fit, validate
from clone_rl.hw_emulator.validation import peers as peer_checks
from clone_rl.hw_emulator.validation import silicon as silicon_checks
from clone_rl.hw_emulator.validation.energyllm import check_energyllm
from clone_rl.hw_emulator.validation.peers import check_banks, check_products, check_rooflines, check_systolic

KNOWN_MISSES = {
    # The law of a bank knows its size, not the width of its port.
    "V4 CACTI 64 KiB, port 32 B, pJ/byte",
    # Its top is 0.82 V; the share of leakage is that of chips at 1.0 V.
    "V6 lowest power SoulMate, W",
    # 3.4 pJ per stored weight bit for the whole system is less than LPDDR3 alone takes for it; sparse reads, we infer.
    "V9 Slim-Llama llama-3.2-3b at 1.58 bits, J/token",
    # The only one of five models that Super mode speeds up less (1.37) than the bandwidth (1.5) or the clock (1.63).
    "V10 Orin Nano Super llama-3.1-8b, tokens/s",
    # Half the cores stream half the bytes per cycle here; the real ones keep 60 %.
    "V11 30 W Q4_K_M, tokens/s",
    # llama.cpp reads a long K/V cache at half the rate at which it reads weights; the emulator at the same.
    "V11 MAXN Q4_K_M after 16 Ki tokens, tokens/s",
}

SCALESIM = "array,dataflow,M,K,N,cycles\n32x32,ws,1,2048,2048,389119\n16x16,os,1,64,64,375\n"
GENZ = "bw_GBps,model,bits,phase,batch,ctx,latency_ms\n68,Llama-3.2-1B,bf16,decode,1,128,33.9105\n"
CACTI = "node_um,cell,periph,size_B,port_B,T_K,read_pJ_per_B\n0.028,itrs-hp,itrs-hp,65536,16,330,0.6988\n"
ENERGYLLM = (
    "decode_freq_bin,effective_batch_size,decode_power_w,decode_time,num_prompt_tokens,num_decode_tokens,temperature\n"
    "0,1,22.229,5.6717,11,100,60.5\n4,1,25.0,4.3,11,100,60.5\n"
)


@pytest.fixture(scope="module")
def checks():
    return validate()


def failures(checks):
    return {check.id for check in checks if not check.passed}


def table(folder: Path, name: str, text: str) -> Path:
    (folder / "deep").mkdir(exist_ok=True)
    (folder / "deep" / name).write_text(text)
    return folder


def test_the_known_misses_and_no_others_fail(checks):
    assert failures(checks) == KNOWN_MISSES


def test_every_group_is_there_and_ids_are_unique(checks):
    assert {check.id.split()[0] for check in checks} == {f"V{i}" for i in range(1, 15)}
    assert len({check.id for check in checks}) == len(checks)


def test_what_the_fits_never_saw_is_marked_as_held_out(checks):
    held_out = {check.id for check in checks if check.held_out}
    for part in ("SpecDec, fast corner", "3DGS", "SoulMate", "Super", "IQ4_XS", "30 W"):
        assert all((check.id in held_out) for check in checks if part in check.id)
    for part in ("4DGS", "Slim-Llama, W", "V1 ", "V4 ", "Nano 15 W", "V11 MAXN Q4_K_M, "):
        assert not any((check.id in held_out) for check in checks if part in check.id and "3DGS" not in check.id)


def test_checks_are_plain_data(checks):
    for check in checks:
        stored = json.loads(json.dumps(check.as_json(), allow_nan=False))
        assert set(stored) == {"id", "reference", "ours", "tolerance", "pass", "source", "error", "held_out"}
        assert isinstance(stored["pass"], bool)
        assert stored["source"]
        assert stored["tolerance"]


def test_dynamic_energy_that_is_linear_in_voltage_is_noticed(monkeypatch):
    monkeypatch.setattr(asic, "dynamic_scale", lambda voltage_v, reference_v, gain: voltage_v / reference_v * gain)
    assert "V6 lowest power Slim-Llama, W" in failures(silicon_checks.check_power())
    assert "V13 Atropos energy per cycle between corners, V squared misses" in failures(silicon_checks.check_regulator())


def test_an_ldo_without_loss_is_noticed(monkeypatch):
    monkeypatch.setattr(asic, "regulator_gain", lambda *_: 1.0)
    assert failures(silicon_checks.check_regulator()) == {"V13 Atropos energy per cycle between corners, LDO"}


def test_a_clock_proportional_to_voltage_is_noticed(monkeypatch):
    monkeypatch.setattr(silicon_checks, "relative_frequency", lambda voltage_v, *_: voltage_v)
    assert len(failures(silicon_checks.check_frequency())) == 6


def test_a_bank_energy_proportional_to_size_is_noticed(monkeypatch):
    monkeypatch.setattr(chip, "bank_energy", lambda size, at_64k: at_64k * size / 65536)
    assert len(failures(check_banks(None))) == 8


def test_one_cycle_more_in_the_compiled_cost_is_noticed(monkeypatch):
    linear = asic._linear

    def slower(*arguments):
        work = linear(*arguments)
        return work | {"array_cycles_per_block": work["array_cycles_per_block"] + 1}

    monkeypatch.setattr(asic, "_linear", slower)
    assert len(failures(check_systolic(None))) == 2


def test_one_cycle_more_in_the_formula_is_noticed(monkeypatch):
    formula = peer_checks.systolic_cycles
    monkeypatch.setattr(peer_checks, "systolic_cycles", lambda *arguments: formula(*arguments) + 1)
    assert len(failures(check_systolic(None))) == 2


def test_free_dram_is_noticed(monkeypatch):
    constants = asic.constants
    monkeypatch.setattr(asic, "constants", lambda *arguments: constants(*arguments) | {"dram_read_j_per_byte": 0.0})
    assert failures(check_products(None)) == {"V2 ZigZag 1x2048x2048 at 128 bit/cycle, J"}


def test_a_board_that_reads_the_cache_for_nothing_is_noticed(monkeypatch):
    layer = board.layer
    monkeypatch.setattr(board, "layer", lambda *arguments: layer(*arguments) | {"dram_bytes": 0.0})
    assert len(failures(check_rooflines(None))) == 4


def test_tables_are_found_in_subfolders_and_add_checks(tmp_path, checks):
    table(tmp_path, "scalesim.csv", SCALESIM)
    table(tmp_path, "genz_hidden.csv", GENZ)
    table(tmp_path, "cacti7_sram.csv", CACTI)
    table(tmp_path, "agxorin_llama3.2-1b_fan_off.csv", ENERGYLLM)
    more = {check.id: check for check in validate(tmp_path)}
    added = set(more) - {check.id for check in checks}
    assert added == {
        "V1 SCALE-Sim WS 32x32, equal rows (table)",
        "V1 SCALE-Sim OS 16x16, equal rows (table)",
        "V3 GenZ Llama-3.2-1B bf16, decode s (table)",
        "V12 agxorin_llama3.2-1b_fan_off batch 1, J/token at 2 clocks",
        "V12 agxorin_llama3.2-1b_fan_off batch 1, clock of least J/token, MHz",
    }
    assert all(more[name].passed for name in added)
    assert more["V12 agxorin_llama3.2-1b_fan_off batch 1, J/token at 2 clocks"].held_out


def test_one_wrong_row_of_a_table_fails(tmp_path):
    table(tmp_path, "scalesim_peers.csv", SCALESIM + "32x32,ws,1,64,64,1000\n")
    found = {check.id: check for check in check_systolic(tmp_path)}["V1 SCALE-Sim WS 32x32, equal rows (table)"]
    assert (found.passed, found.reference, found.ours) == (False, 2.0, 1.0)


def test_an_empty_folder_changes_nothing(tmp_path, checks):
    assert [check.id for check in validate(tmp_path)] == [check.id for check in checks]


def test_a_missing_folder_is_reported(tmp_path):
    with pytest.raises(BadFileError, match="no such folder of reference tables"):
        validate(tmp_path / "absent")
    with pytest.raises(BadFileError, match="no such folder of reference tables"):
        fit(tmp_path / "absent")


def test_too_small_a_table_is_not_fitted(tmp_path):
    with pytest.raises(BadFileError, match="too few batch sizes and clocks"):
        fit(table(tmp_path, "agxorin_fan_on.csv", ENERGYLLM))


@pytest.mark.parametrize(
    ("name", "text", "column", "read"),
    [
        ("scalesim.csv", "array,dataflow,M,K,N\n32x32,ws,1,64,64\n", "cycles", check_systolic),
        ("scalesim.csv", SCALESIM.replace("389119", "many"), "cycles", check_systolic),
        ("scalesim.csv", SCALESIM.replace("32x32", "square"), "array", check_systolic),
        ("scalesim.csv", SCALESIM.replace("ws", "sideways"), "dataflow", check_systolic),
        ("scalesim.csv", "array,dataflow,M,K,N,cycles\n32x32,ws,1\n", "K", check_systolic),
        ("zigzag.csv", "M,K,N,dram_bits_per_cycle,cycles,energy_pJ\n1,2048,2048,128,0,1e8\n", "cycles", check_products),
        ("genz.csv", GENZ.replace("33.9105", "nan"), "latency_ms", check_rooflines),
        ("genz.csv", GENZ.replace("bf16", ""), "bits", check_rooflines),
        ("cacti7.csv", CACTI.replace("0.6988", "-1"), "read_pJ_per_B", check_banks),
        ("agxorin_fan_off.csv", ENERGYLLM.replace("\n4,1", "\n44,1"), "decode_freq_bin", check_energyllm),
        ("agxorin_fan_off.csv", ENERGYLLM.replace("temperature", "celsius"), "temperature", check_energyllm),
    ],
)
def test_a_malformed_table_names_file_and_column(tmp_path, name, text, column, read):
    table(tmp_path, name, text)
    with pytest.raises(BadFileError) as caught:
        read(tmp_path)
    assert name in str(caught.value)
    assert column in str(caught.value)


def test_a_table_that_is_no_text_is_reported(tmp_path):
    (tmp_path / "scalesim.csv").write_bytes(b"\xff\xfe\x00array")
    with pytest.raises(BadFileError, match="is not a CSV table"):
        check_systolic(tmp_path)


def test_constants_that_need_no_table_are_what_their_fit_gives():
    fitted = fit()
    assert len(fitted) == 8
    assert {one.name: one.error for one in fitted if abs(one.error) > 0.01} == {}
    assert set(fitted[0].as_json()) == {"name", "value", "shipped", "rows", "source", "error"}


def test_constants_of_the_eager_board_are_what_their_fit_gives():
    folder = os.environ.get("CLONE_RL_REFERENCE")
    if not folder:
        pytest.skip("CLONE_RL_REFERENCE names no folder with EnergyLLM's agxorin_*fan_on*.csv")
    fitted = [one for one in fit(Path(folder)) if one.name.startswith("orin-agx-eager")]
    if not fitted:
        pytest.skip(f"no agxorin_*fan_on*.csv under {folder}, which CLONE_RL_REFERENCE names")
    assert {one.name: one.error for one in fitted if abs(one.error) > 0.01} == {}
