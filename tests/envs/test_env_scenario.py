import gymnasium as gym
import pytest

from clone_rl.envs.control import load_control
from clone_rl.envs.scenario import Interference, Scenario, scenario_names
from clone_rl.errors import BadFileError, BadValueError, CloneRLError, UnknownNameError

TABLE = {"name": "mine", "chip": "asic28-sram", "traces": "default", "slo": [{"name": "a", "ttft_s": 0.02, "tpot_s": 5e-4}]}


@pytest.mark.parametrize("name", scenario_names())
def test_shipped_scenarios_load_under_their_own_name(name):
    assert Scenario.load(name).name == name


def test_a_small_table_is_a_scenario_with_defaults():
    scenario = Scenario.parse(TABLE, "mine.toml")
    assert scenario.interference == Interference()
    assert scenario.deadline == "carry-over"
    assert scenario.probe is True


@pytest.mark.parametrize(
    ("arguments", "suggestion"),
    [
        ({"scenario": "defalt"}, "'default'"),
        ({"split": "trian"}, "'train'"),
        ({"switchng": "pmic"}, "'switching'"),
        ({"switching": "pmc"}, "'pmic'"),
        ({"deadline": "carryover"}, "'carry-over'"),
        ({"granularity": "layers"}, "'layer'"),
        ({"chip": "asic28-srams"}, "'asic28-sram'"),
        ({"traces": "defaults"}, "'default'"),
    ],
    ids=lambda value: "".join(value) if isinstance(value, dict) else "",
)
def test_an_unknown_name_gets_a_suggestion(trace_folder, arguments, suggestion):
    with pytest.raises(UnknownNameError, match=f"did you mean {suggestion}"):
        gym.make("clone_rl/LayerControl-v0", **{"traces": trace_folder, **arguments})


@pytest.mark.parametrize(
    "changes",
    [
        {"decision_delay": 2},
        {"slo": ()},
        {"slack_low": 3.0},
        {"interference": {"slowdown": 0.5}},
        {"ambient_c": 90.0},
        {"regulator": "ldo", "chip": "orin-agx"},
    ],
    ids=str,
)
def test_values_that_make_no_sense_are_refused(changes):
    with pytest.raises(BadValueError):
        Scenario.load("default", **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"decision_delay": -1},
        {"slack_low": 0.0},
        {"slack_high": float("nan")},
        {"slo": [{"name": "a", "ttft_s": 0.02, "tpot_s": 0.0}]},
        {"slo": [{"name": "a", "ttft_s": float("inf"), "tpot_s": 1.0}]},
        {"policy_macs": -5},
        {"ambient_c": "hot"},
        {"groups": 2.5},
        {"groups": True},
    ],
    ids=str,
)
def test_what_is_no_number_of_its_field_is_refused_like_in_a_file(changes):
    with pytest.raises(BadFileError, match="scenario default"):
        Scenario.load("default", **changes)


@pytest.mark.parametrize("groups", [0, 9])
def test_the_number_of_layer_groups_is_checked(trace_folder, groups):
    with pytest.raises(BadValueError, match="1 to 8"):
        load_control("token", groups=groups, traces=trace_folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slos": []}, "did you mean 'slo'"),
        ({"weights": {"lates": 1.0}}, "did you mean 'late'"),
        ({"weights": {"late": -1.0}}, "positive"),
        ({"interference": {"slot_s": 0.0}}, "positive"),
        ({"interference": 3}, "not a table"),
        ({"slo": {"name": "a"}}, r"write \[\[slo\]\]"),
        ({"slo": [{"name": "a", "ttft_s": 0.02}]}, "missing key 'tpot_s'"),
        ({"slo": [{"name": "a", "ttft_s": float("nan"), "tpot_s": 1.0}]}, "finite"),
        ({"chip": 3}, "write a name, a path or a table"),
        ({"probe": 1}, "write true or false"),
        ({"policy_macs": -1}, "positive"),
    ],
    ids=str,
)
def test_a_bad_scenario_table_is_refused_with_the_reason(change, message):
    with pytest.raises(BadFileError, match=message):
        Scenario.parse({**TABLE, **change}, "mine.toml")


def test_a_class_is_called_by_a_name_of_its_own():
    level = {"name": "a", "ttft_s": 0.02, "tpot_s": 1e-3}
    with pytest.raises(BadValueError, match=r"two .* classes are called 'a'"):
        Scenario.load("default", slo=[level, {**level, "ttft_s": 0.01}])


@pytest.mark.parametrize("content", [b"name = ", bytes(range(256)), None], ids=["not TOML", "binary", "missing"])
def test_a_bad_scenario_file_is_refused(tmp_path, content):
    path = tmp_path / "scenario.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadFileError, match=r"scenario\.toml"):
        Scenario.load(str(path))


def test_a_scenario_file_of_ones_own(tmp_path, trace_folder):
    path = tmp_path / "scenario.toml"
    path.write_text(
        f'name = "mine"\nchip = "asic28-lpddr4"\ntraces = "{trace_folder}"\n[[slo]]\nname = "a"\nttft_s = 1\ntpot_s = 0.1\n'
    )
    control = load_control("layer", str(path))
    assert control.scenario.chip == "asic28-lpddr4"
    assert isinstance(control.scenario, Scenario)


def test_a_model_too_large_for_the_chip_is_refused_by_the_environment(trace_folder, tmp_path):
    from importlib import resources

    text = (resources.files("clone_rl.hw_emulator") / "chips" / "asic28-sram.toml").read_text(encoding="utf-8")
    path = tmp_path / "small.toml"
    path.write_text(text.replace("size_bytes = 8388608", "size_bytes = 1048576"), encoding="utf-8")
    with pytest.raises(CloneRLError, match="no DRAM"):
        load_control("layer", chip=str(path), traces=trace_folder)


def test_more_groups_than_layers_are_refused_and_the_default_fits_any_model(traces, tmp_path):
    import dataclasses

    from clone_rl.hw_emulator.workload import stored_workload

    shape = dataclasses.replace(stored_workload(traces.card["shape"], "traces"), layers=3)
    cut = {name: getattr(traces, name)[:, :2] for name in ("signal", "agree", "kl", "dnll", "hidden")}
    cut |= {name: getattr(traces, name)[:, :3] for name in ("margin", "entropy")}
    card = {**traces.card, "layers": 3, "shape": shape.as_dict()}
    dataclasses.replace(traces, card=card, **cut).save(tmp_path / "shallow")
    assert load_control("token", traces=str(tmp_path / "shallow")).groups == 3
    with pytest.raises(BadValueError, match="1 to 3"):
        load_control("token", groups=4, traces=str(tmp_path / "shallow"))


def test_a_scenario_can_be_renamed_like_any_field():
    assert Scenario.load("default", name="mine").name == "mine"
    assert Scenario.load(Scenario.load("hot"), name="hotter", ambient_c=61.0).name == "hotter"


def test_all_that_is_missing_or_unknown_in_a_scenario_is_named_at_once():
    """In whichever tables, with what may have been meant for each."""
    table = {"nam": "mine", "slo": [{"ttft_s": 0.02}, {"name": "b", "tpot": 1.0}], "limits": {"mis": 0.1, "disagre": 0.1}}
    with pytest.raises(BadFileError) as caught:
        Scenario.parse(table, "mine.toml")
    assert caught.value.message == (
        "mine.toml: unknown key 'nam'; missing keys 'name', 'chip', 'traces'; "
        "mine.toml: slo[0]: missing keys 'name', 'tpot_s'; "
        "mine.toml: slo[1]: unknown key 'tpot'; missing keys 'ttft_s', 'tpot_s'; "
        "mine.toml: [limits]: unknown keys 'mis', 'disagre'"
    )
    for meant in ("'nam': did you mean 'name'?", "'tpot': keys carry their unit", "'mis': did you mean 'miss'?"):
        assert meant in caught.value.hint
