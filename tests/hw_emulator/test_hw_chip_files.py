from importlib import resources

import pytest

from clone_rl.errors import BadFileError, CloneRLError, UnknownNameError
from clone_rl.hw_emulator import chip_names, load_chip

SHIPPED = (resources.files("clone_rl.hw_emulator") / "chips" / "asic28-lpddr4.toml").read_text(encoding="utf-8")


def write_chip(folder, *changes):
    text = SHIPPED
    for old, new in changes:
        assert text.count(old) >= 1
        text = text.replace(old, new, 1)
    path = folder / "chip.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", chip_names())
def test_shipped_chips_load_under_their_own_name(name):
    chip = load_chip(name)
    assert chip.name == name
    assert chip.description


def test_a_copy_of_a_shipped_chip_is_the_same_chip(tmp_path):
    assert load_chip(write_chip(tmp_path)) == load_chip("asic28-lpddr4")


def test_a_whole_number_serves_for_a_float(tmp_path):
    assert load_chip(write_chip(tmp_path, ("limit_c = 95.0", "limit_c = 95"))).thermal.limit_c == 95.0


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        pytest.param("tiles = 8 ", "tils = 8 ", "did you mean 'tiles'", id="unknown key"),
        pytest.param("[sfu]", "[sfus]", "did you mean 'sfu'", id="unknown section"),
        pytest.param("lanes = 64", "", "missing key 'lanes'", id="missing key"),
        pytest.param("[switching]", "[[switching]]", "not a table", id="section of another kind"),
        pytest.param("tiles = 8 ", 'tiles = "eight" ', "write a int", id="text for a number"),
        pytest.param("tiles = 8 ", "tiles = 8.5 ", "write a int", id="fraction for an integer"),
        pytest.param("tiles = 8 ", "tiles = true ", "write a int", id="bool for an integer"),
        pytest.param('regulator = "switched-capacitor"', "regulator = 3", "write a str", id="number for text"),
        pytest.param("mac_energy_j = 0.10e-12", "mac_energy_j = nan", "finite", id="not a number"),
        pytest.param("limit_w = 1.5", "limit_w = inf", "finite", id="infinite"),
        pytest.param("limit_w = 1.5", "limit_w = -1.5", "positive", id="negative"),
        pytest.param("lanes = 64", "lanes = 0", "positive", id="zero"),
        pytest.param("voltage_v = 0.60", "voltage_v = 0.55", "do not ascend", id="voltage falls"),
        pytest.param("frequency_hz = 107e6", "frequency_hz = 65e6", "do not ascend", id="frequency repeats"),
        pytest.param("frequency_hz = 107e6", "", "missing key 'frequency_hz'", id="point without a frequency"),
        pytest.param("[compute]", "[compute", "is not a chip file", id="not TOML"),
    ],
)
def test_a_bad_chip_file_is_refused_with_the_reason(tmp_path, old, new, message):
    with pytest.raises(BadFileError, match=message):
        load_chip(write_chip(tmp_path, (old, new)))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("regulator_efficiency = 0.85", "regulator_efficiency = 1.2", id="regulator_efficiency"),
        pytest.param("gemv_utilisation = 0.8", "gemv_utilisation = 1.2", id="gemv_utilisation"),
        pytest.param("achievable = 0.85", "achievable = 1.2", id="achievable"),
        pytest.param("gated_leakage_fraction = 0.05", "gated_leakage_fraction = 1.2", id="gated_leakage_fraction"),
    ],
)
def test_a_share_above_one_is_refused(tmp_path, old, new):
    with pytest.raises(BadFileError, match=new.split(maxsplit=1)[0]):
        load_chip(write_chip(tmp_path, (old, new)))


def test_a_linear_regulator_cannot_raise_its_input_voltage(tmp_path):
    changes = ('regulator = "switched-capacitor"', 'regulator = "ldo"'), ("input_voltage_v = 1.1", "input_voltage_v = 0.9")
    with pytest.raises(BadFileError, match="input_voltage_v"):
        load_chip(write_chip(tmp_path, *changes))


def test_a_chip_needs_two_operating_points(tmp_path):
    head, first, *_ = SHIPPED.split("[[operating_points]]")
    path = tmp_path / "one.toml"
    path.write_text(f"{head}[[operating_points]]{first}", encoding="utf-8")
    with pytest.raises(BadFileError, match="at least two"):
        load_chip(str(path))


@pytest.mark.parametrize(
    ("old", "new", "suggestion"),
    [
        ('regulator = "switched-capacitor"', 'regulator = "switched-capacitr"', "switched-capacitor"),
        ('mechanism = "on-chip"', 'mechanism = "onchip"', "on-chip"),
    ],
)
def test_an_unknown_name_in_a_chip_file_gets_a_suggestion(tmp_path, old, new, suggestion):
    with pytest.raises(UnknownNameError, match=f"did you mean '{suggestion}'"):
        load_chip(write_chip(tmp_path, (old, new)))


def test_an_unknown_chip_gets_a_suggestion():
    with pytest.raises(UnknownNameError, match="did you mean 'asic28-sram'"):
        load_chip("asic28-sran")


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


def test_errors_carry_a_kind_for_machines_and_a_hint_for_people():
    with pytest.raises(CloneRLError) as caught:
        load_chip("asic28-sran")
    assert caught.value.kind == "unknown_name"
    assert caught.value.hint in str(caught.value)
