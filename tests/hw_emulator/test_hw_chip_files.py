import copy
import math
import re
import tomllib
from importlib import resources

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clone_rl.errors import BadFileError, BadValueError, CloneRLError, UnknownNameError
from clone_rl.hw_emulator import Asic, Board, Chip, Emulator, Workload, chip_names, load_chip
from clone_rl.hw_emulator.chip import parse_chip
from clone_rl.hw_emulator.voltage import corner_threshold_v, relative_frequency

TEXTS = {
    name: (resources.files("clone_rl.hw_emulator") / "chips" / f"{name}.toml").read_text(encoding="utf-8")
    for name in chip_names()
}
ASIC, BOARD = TEXTS["asic28-lpddr4"], TEXTS["orin-agx"]
ASICS = [name for name in chip_names() if isinstance(load_chip(name), Asic)]


def write_chip(folder, *changes, text=ASIC):
    for old, new in changes:
        assert text.count(old) >= 1, old
        text = text.replace(old, new, 1)
    path = folder / "chip.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


# What ships.


@pytest.mark.parametrize("name", chip_names())
def test_shipped_chips_load_under_their_own_name(name):
    chip = load_chip(name)
    assert chip.name == name
    assert chip.description
    assert chip.limit_w > 0
    assert isinstance(chip, Asic if name.startswith("asic") else Board)


@pytest.mark.parametrize("name", ASICS)
def test_operating_points_follow_the_law_of_frequency_rounded_down_to_a_megahertz(name):
    chip = load_chip(name)
    for point in chip.operating_points:
        highest = 500e6 * relative_frequency(point.voltage_v, chip.power.threshold_voltage_v)
        assert point.frequency_hz == math.floor(highest / 1e6 + 1e-9) * 1e6


def test_the_law_of_frequency_passes_between_the_published_28_nm_chips():
    assert 0.9 * 0.207 <= relative_frequency(0.60) <= 1.1 * 0.220
    assert relative_frequency(0.65) == pytest.approx(0.35, rel=0.1)
    assert relative_frequency(1.0) == 1.0


@given(st.floats(0.53, 1.2), st.floats(1e-3, 0.3))
def test_a_higher_voltage_always_clocks_faster(voltage, more):
    assert relative_frequency(voltage + more) > relative_frequency(voltage)


@given(st.floats(0.55, 0.9), st.floats(0.3, 0.5))
def test_a_corner_s_threshold_reproduces_the_frequency_that_it_was_solved_from(voltage, threshold):
    relative = relative_frequency(voltage, threshold)
    assert corner_threshold_v(voltage, relative) == pytest.approx(threshold, abs=1e-9)


def test_a_voltage_at_the_threshold_has_no_frequency():
    with pytest.raises(BadValueError, match=r"above the threshold, 0\.525"):
        relative_frequency(0.525)


@pytest.mark.parametrize("name", ASICS)
def test_shipped_accelerators_say_where_each_constant_comes_from(name):
    plain = {
        "reference_voltage_v",  # a choice that the head of the file names
        "name",
        "description",
        "array_columns",
        "size_bytes",
        "bank_bytes",
        "double_buffered",
        "lanes_per_tile",
        "ambient_c",
    }
    body, commented = TEXTS[name].split("\n# f(V) = ")[0], False
    for line in body.splitlines():
        if line.startswith("["):
            commented = "#" in line
        elif line and not line.startswith("#"):
            assert commented or "#" in line or line.split(" = ")[0] in plain, line


def test_a_users_file_is_loaded_by_its_path(tmp_path):
    path = write_chip(tmp_path, ('name = "asic28-lpddr4"', 'name = "mine"'), ("tiles = 8 ", "tiles = 4 "))
    chip = Chip.load(path)
    assert (chip.name, chip.compute.tiles) == ("mine", 4)
    assert Chip.load(write_chip(tmp_path)) == Chip.load("asic28-lpddr4")
    assert Emulator(chip, Workload.from_config("smollm2-135m")).layer().energy_j > 0


def test_a_whole_number_serves_for_a_float(tmp_path):
    assert load_chip(write_chip(tmp_path, ("limit_c = 95.0", "limit_c = 95"))).thermal.limit_c == 95.0


def test_dram_and_lora_unit_are_optional(tmp_path):
    without = re.sub(r"\[(lpu|dram)\][^\[]*", "", ASIC)
    chip = load_chip(write_chip(tmp_path, text=without))
    assert chip.dram is chip.lpu is None


# What is refused. Every message names the file, the key, the value and what is allowed.


@pytest.mark.parametrize(
    ("old", "new", "message", "hint"),
    [
        pytest.param("tiles = 8 ", "tils = 8 ", "[compute]: unknown key 'tils'", "did you mean 'tiles'", id="unknown key"),
        pytest.param("[sfu]", "[sfus]", "unknown key 'sfus'", "did you mean 'sfu'", id="unknown table"),
        pytest.param("limit_w = 1.5", "limit = 1.5", "[power]: unknown key 'limit'", "keys carry their unit", id="no unit"),
        pytest.param("ize_bytes = 4194304", "ize = 4", "unknown key 'size'", "did you mean 'size_bytes'", id="no bytes"),
        pytest.param("limit_w = 1.5", "limit_mw = 1.5", "unknown key 'limit_mw'", "did you mean 'limit_w'", id="other unit"),
        pytest.param("macs = 64", "macs = 0", "[lpu]: macs is 0", "write a positive number", id="zero"),
        pytest.param("tiles = 8 ", "tiles = -8 ", "[compute]: tiles is -8", "write a positive number", id="negative count"),
        pytest.param("limit_w = 1.5", "limit_w = -1.5", "[power]: limit_w is -1.5", "write a positive number", id="negative"),
        pytest.param("limit_w = 1.5", "limit_w = nan", "[power]: limit_w is nan", "write a finite number", id="NaN"),
        pytest.param("limit_w = 1.5", "limit_w = inf", "[power]: limit_w is inf", "write a finite number", id="infinite"),
        pytest.param("limit_w = 1.5", f"limit_w = 1{'0' * 400}", "limit_w has 401 digits", "finite", id="beyond floats"),
        pytest.param("tiles = 8 ", f"tiles = 8{'0' * 400} ", "tiles has 401 digits", "finite", id="count beyond floats"),
        pytest.param(
            "tiles = 8 ", 'tiles = "eight" ', "[compute]: tiles is 'eight'", "write an integer", id="text for a number"
        ),
        pytest.param("tiles = 8 ", "tiles = 8.5 ", "[compute]: tiles is 8.5", "write an integer", id="fraction for a count"),
        pytest.param("tiles = 8 ", "tiles = true ", "[compute]: tiles is True", "write an integer", id="bool for a count"),
        pytest.param(
            "double_buffered = true", "double_buffered = 1", "double_buffered is 1", "write true or false", id="no bool"
        ),
        pytest.param(
            'regulator = "switched-capacitor"', "regulator = 3", "regulator is 3", "write a text in quotes", id="no text"
        ),
        pytest.param(
            "voltage_v = 0.60", "voltage_v = 0.55", "operating_points[1] (0.55 V, 1.09e+08 Hz)", "sort", id="V falls"
        ),
        pytest.param("frequency_hz = 109e6", "frequency_hz = 50e6", "operating_points[1] (0.6 V, 5e+07 Hz)", "sort", id="f"),
        pytest.param(
            "voltage_v = 0.56", "voltage_v = 0.525", "operating_points[0]: voltage_v is 0.525", "above", id="at threshold"
        ),
        pytest.param("voltage_v = 0.56", "voltage_v = 0.4", "voltage_v is 0.4", "threshold_voltage_v, 0.525", id="below"),
        pytest.param("size_bytes = 4194304", "size_bytes = 262143", "[sram]: size_bytes is 262143", "262144", id="buffers"),
        pytest.param(
            'regulator = "switched-capacitor"',
            'regulator = "switched"',
            "[power]: regulator is 'switched'",
            "capacitor",
            id="reg",
        ),
        pytest.param(
            'mechanism = "on-chip"', 'mechanism = "onchip"', "mechanism is 'onchip'", "did you mean 'on-chip'", id="m"
        ),
        pytest.param('dataflow = "ws"', 'dataflow = "rs"', "[compute]: dataflow is 'rs'", "known: is, os, ws", id="dataflow"),
        pytest.param(
            "int4 = 1.0", "int5 = 1.0", "[compute.macs_per_pe]: unknown number format 'int5'", "did you mean", id="fmt"
        ),
        pytest.param("int4 = 1.0", "int4 = 0.0", "[compute.macs_per_pe]: int4 is 0.0", "write a positive number", id="rate"),
        pytest.param(
            "int4 = 1.0", 'int4 = "x"', "[compute.macs_per_pe]: int4 is 'x'", "write a positive number", id="no rate"
        ),
        pytest.param("int4 = 1.0\n", "", "[compute.macs_per_pe] and [compute.mac_energy_j] differ", "the same", id="formats"),
        pytest.param('= "power-down"', '= "powerdown"', "between_transfers is 'powerdown'", "'power-down'", id="DRAM state"),
        pytest.param("achievable = 0.85", "achievable = 1.2", "[dram]: achievable is 1.2", "a share is at most 1", id="share"),
        pytest.param("gemv_utilisation = 0.8", "gemv_utilisation = 1.2", "gemv_utilisation is 1.2", "at most 1", id="gemv"),
        pytest.param("efficiency = 0.85", "efficiency = 1.2", "regulator_efficiency is 1.2", "at most 1", id="efficiency"),
        pytest.param("gated_fraction = 0.1", "gated_fraction = 2.0", "clock_gated_fraction is 2.0", "at most 1", id="clock"),
        pytest.param("e_fraction = 0.05", "e_fraction = 1.2", "gated_leakage_fraction is 1.2", "at most 1", id="gated"),
        pytest.param(
            "throttle_c = 85.0", "throttle_c = 95.0", "[thermal]: ambient_c, throttle_c, limit_c", "ascend", id="hot"
        ),
        pytest.param("ambient_c = 25.0", "ambient_c = 85.0", "are 85.0, 85.0, 95.0", "ascend", id="ambient"),
    ],
)
def test_a_bad_value_is_refused_with_file_key_value_and_what_is_allowed(tmp_path, old, new, message, hint):
    path = write_chip(tmp_path, (old, new))
    with pytest.raises(BadFileError) as caught:
        load_chip(path)
    assert caught.value.message.startswith(path)
    assert message in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        pytest.param("macs = 64", "", "[lpu]: missing key 'macs'", id="key"),
        pytest.param("frequency_hz = 109e6", "", "operating_points[1]: missing key 'frequency_hz'", id="point"),
        pytest.param("[switching]", "[[switching]]", "not a table", id="list of tables"),
        pytest.param("[compute]", "[compute", "is not a chip file", id="not TOML"),
        pytest.param("tiles = 8 ", "tiles = 8\ntiles = 9 ", "is not a chip file", id="twice"),
        pytest.param("tiles = 8 ", f"tiles = {'[' * 5000}{']' * 5000} ", "is not a chip file", id="nested"),
        pytest.param("tiles = 8 ", f"tiles = {'8' * 5000} ", "is not a chip file", id="endless number"),
    ],
)
def test_a_broken_chip_file_is_refused_with_its_name_and_the_place(tmp_path, old, new, message):
    path = write_chip(tmp_path, (old, new))
    with pytest.raises(BadFileError, match=re.escape(message)) as caught:
        load_chip(path)
    assert caught.value.message.startswith(path)


@pytest.mark.parametrize("section", ["compute", "sram", "sfu", "power", "switching", "thermal"])
def test_a_missing_table_is_named(section):
    table = tomllib.loads(ASIC)
    del table[section]
    with pytest.raises(BadFileError, match=f"my.toml: missing key '{section}'"):
        parse_chip(table, "my.toml")


def test_all_that_is_missing_or_unknown_in_a_chip_file_is_named_at_once(tmp_path):
    """In whichever tables, with what may have been meant for each."""
    changes = ("tiles = 8 ", "tils = 8 "), ("macs = 64", ""), ("frequency_hz = 109e6", ""), ("[sfu]", "[sfus]")
    with pytest.raises(BadFileError) as caught:
        load_chip(write_chip(tmp_path, *changes))
    for part in (
        "[compute]: unknown key 'tils'; missing key 'tiles'",
        "[lpu]: missing key 'macs'",
        "operating_points[1]: missing key 'frequency_hz'",
        "unknown key 'sfus'; missing key 'sfu'",
    ):
        assert part in caught.value.message
    assert caught.value.hint == "'tils': did you mean 'tiles'?; 'sfus': did you mean 'sfu'?"


@pytest.mark.parametrize("points", [None, 3, [], [{"voltage_v": 1.0, "frequency_hz": 5e8}], {"voltage_v": 1.0}])
def test_a_chip_needs_two_operating_points(points):
    with pytest.raises(BadFileError, match=r"my.toml: \[\[operating_points\]\] needs at least two"):
        parse_chip({**tomllib.loads(ASIC), "operating_points": points}, "my.toml")


def test_a_linear_regulator_cannot_raise_its_input_voltage(tmp_path):
    changes = ('regulator = "switched-capacitor"', 'regulator = "ldo"'), ("input_voltage_v = 1.1", "input_voltage_v = 0.99")
    with pytest.raises(BadFileError, match=r"input_voltage_v is 0\.99 .an LDO cannot raise its input: at least 1\.0"):
        load_chip(write_chip(tmp_path, *changes))
    assert load_chip(write_chip(tmp_path, changes[0])).power.regulator == "ldo"


def test_a_board_needs_external_memory():
    with pytest.raises(BadFileError, match=r"my.toml: no \[dram\] table .a board has external memory"):
        parse_chip({key: value for key, value in tomllib.loads(BOARD).items() if key != "dram"}, "my.toml")


@pytest.mark.parametrize("formats", [3, [], "int8", ["int9"], [8], [["int8"]], {}])
def test_formats_of_a_board_are_a_list_of_known_ones(formats):
    table = tomllib.loads(BOARD)
    table["board"]["formats"] = formats
    with pytest.raises(BadFileError, match=r"my.toml: \[board\]: formats") as caught:
        parse_chip(table, "my.toml")
    assert re.search("int8|fp8", caught.value.hint)


def test_a_board_has_no_parts_of_an_accelerator():
    with pytest.raises(BadFileError, match=r"unknown key 'compute'"):
        parse_chip({**tomllib.loads(BOARD), "compute": {}}, "my.toml")


def test_an_unknown_chip_gets_a_suggestion():
    with pytest.raises(UnknownNameError, match="did you mean 'asic28-sram'") as caught:
        load_chip("asic28-sran")
    assert caught.value.kind == "unknown_name"
    assert caught.value.hint in str(caught.value)


def test_a_missing_chip_file_is_named(tmp_path):
    with pytest.raises(BadFileError, match=r"nowhere\.toml"):
        load_chip(str(tmp_path / "nowhere.toml"))


def test_binary_files_and_folders_are_not_chips(tmp_path):
    binary, folder = tmp_path / "binary.toml", tmp_path / "folder.toml"
    binary.write_bytes(bytes(range(256)))
    folder.mkdir()
    for path in (binary, folder):
        with pytest.raises(BadFileError, match="is not a chip file"):
            load_chip(str(path))


# Whatever is written into a chip file, it is loaded or refused for a reason.


def places(table, path=()):
    """Paths to every value of nested tables and lists."""
    items = table.items() if isinstance(table, dict) else enumerate(table) if isinstance(table, list) else ()
    return [place for key, value in items for place in [(*path, key), *places(value, (*path, key))]]


STRANGE = st.sampled_from(
    [
        0,
        -1,
        1,
        0.0,
        -0.5,
        1e308,
        1e-308,
        math.nan,
        math.inf,
        -math.inf,
        10**400,
        True,
        False,
        None,
        "",
        "x",
        "1.0",
        "ldo",
        "os",
    ]
).flatmap(lambda value: st.sampled_from([value, [value], [], {}, {"x": value}, [{}], "standby", "fp16", 1e9]))


@given(
    st.sampled_from([ASIC, BOARD]),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 2), STRANGE), min_size=1, max_size=4),
)
def test_any_change_of_a_value_is_accepted_or_refused_for_a_reason(text, changes):
    table = copy.deepcopy(tomllib.loads(text))
    for which, how, value in changes:
        found = places(table)
        *parents, last = found[which % len(found)]
        inner = table
        for key in parents:
            inner = inner[key]
        if how == 0:
            inner[last] = value
        elif how == 1:
            del inner[last]
        elif isinstance(inner, dict):
            inner[f"{last}x"] = value
    try:
        chip = parse_chip(table, "my.toml")
    except CloneRLError as error:
        assert "my.toml" in error.message
    else:
        assert len(chip.operating_points) >= 2


@given(
    st.sampled_from([ASIC, BOARD]),
    st.integers(0, 10**6),
    st.integers(0, 30),
    st.text("[]{}=\"'.#,\n\\ -019aeinfx_\0é", max_size=8),
)
def test_any_slip_in_the_text_is_accepted_or_refused_for_a_reason(tmp_path_factory, text, start, length, new):
    start %= len(text)
    path = tmp_path_factory.getbasetemp() / "slip.toml"
    path.write_text(text[:start] + new + text[start + length :], encoding="utf-8")
    try:
        assert load_chip(str(path)).description is not None
    except CloneRLError as error:
        assert str(path) in error.message


# Other numbers of tiles.


@pytest.mark.parametrize("tiles", [1, 3, 8, 32])
def test_another_number_of_tiles_scales_what_a_tile_brings(tiles):
    chip = load_chip("asic28-sram")
    other = chip.with_tiles(tiles)
    assert other.macs_per_cycle("int4") == tiles * 64
    assert other.area_mm2 - chip.area_mm2 == pytest.approx((tiles - 2) * (64 * 450e-6 + 0.25))
    workload = Workload(layers=2, hidden_size=256, heads=4, kv_heads=2, ff_size=768)
    before, after = Emulator(chip, workload), Emulator(other, workload)
    assert before.layer(context=64).latency_s / after.layer(context=64).latency_s == pytest.approx(tiles / 2)
    logic_w = (after.points["leakage_w"] - before.points["leakage_w"])[-1]
    per_mm2 = 0.3e-3 * (1.0 / 0.9) * math.exp(0.25) / 0.85
    assert logic_w == pytest.approx((other.area_mm2 - chip.area_mm2) * per_mm2)
    assert chip.with_tiles(2).compute == chip.compute


def test_tiles_whose_buffers_exceed_the_sram_are_refused():
    chip = load_chip("asic28-sram")
    assert chip.with_tiles(256).buffers_bytes == chip.sram.size_bytes
    with pytest.raises(BadValueError, match="257 tiles need 8421376 bytes of buffers and asic28-sram has 8388608"):
        chip.with_tiles(257)
    with pytest.raises(BadValueError, match=r"tiles is 0 .at least 1"):
        chip.with_tiles(0)


def test_a_format_without_multipliers_is_refused_with_the_known_ones():
    with pytest.raises(BadValueError, match=r"asic28-sram has no fp32 multipliers .formats: int4, int8"):
        load_chip("asic28-sram").macs_per_cycle("fp32")


def test_a_bank_larger_than_the_sram_is_refused(tmp_path):
    with pytest.raises(BadFileError, match="bank_bytes is 16777216"):
        load_chip(write_chip(tmp_path, ("bank_bytes = 65536", "bank_bytes = 16777216")))


def test_memory_is_not_retained_above_the_lowest_supply(tmp_path):
    with pytest.raises(BadFileError, match=r"retention_voltage_v is 0\.6"):
        load_chip(write_chip(tmp_path, ("retention_voltage_v = 0.45", "retention_voltage_v = 0.6")))


@pytest.mark.parametrize(("kind", "name", "other"), [(Asic, "orin-nano", "Board"), (Board, "asic28-sram", "Asic")])
def test_a_chip_of_the_other_kind_is_refused_where_one_is_asked_for(kind, name, other):
    with pytest.raises(BadValueError, match=f"{name} is no {kind.__name__}") as caught:
        kind.load(name)
    assert other in caught.value.hint
    assert type(Chip.load(name)).__name__ == other
