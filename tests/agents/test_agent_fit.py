"""One check of whether a controller fits its chip, its model and its scenario, at every entrance."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

import clone_rl.hw_emulator
from clone_rl.agents.fit import Place, check_fit
from clone_rl.agents.heuristics import Fixed
from clone_rl.agents.policy import Policy, policy_cards
from clone_rl.envs.scenario import Scenario, scenario_names
from clone_rl.errors import BadFileError, BadValueError, MisfitError
from clone_rl.hw_emulator import load_chip

CHIP = load_chip("asic28-sram")
OTHER = "f" * 64


@pytest.fixture
def policy():
    return Policy.load("default")


def test_who_does_not_say_where_it_comes_from_fits_everywhere():
    assert check_fit(Fixed("performance", 3), "performance", Place(load_chip("orin-nano"), "any", OTHER)) == []


def test_every_shipped_policy_fits_where_it_was_trained():
    for name, card in policy_cards().items():
        scenario = Scenario.load(card["scenario"])
        place = Place(scenario.load_chip(), "it", card["model_sha256"], scenario=scenario, kind="layer")
        assert check_fit(Policy.load(name), name, place) == []


def test_another_number_of_points_is_refused_with_what_would_do(policy):
    with pytest.raises(MisfitError, match="'mine' was made for 8 operating points and orin-nano has 4") as caught:
        check_fit(policy, "mine", Place(load_chip("orin-nano")), strict=False)
    hint = caught.value.hint
    assert "train one for this chip" in hint and "'performance'" in hint and "asic28-sram" in hint
    for chip in {Scenario.load(name).chip for name in scenario_names()}:  # none of them has targets for a board
        assert chip in hint
    with pytest.raises(MisfitError) as caught:
        seven = replace(load_chip("asic28-lpddr4"), operating_points=load_chip("asic28-lpddr4").operating_points[:7])
        check_fit(policy, "mine", Place(seven))
    assert "(scenario dram-wall)" in caught.value.hint and "'dram-wall'" in caught.value.hint


def test_another_model_is_refused_unless_asked_for(policy):
    place = Place(CHIP, "'other'", OTHER)
    with pytest.raises(
        MisfitError, match=r"'mine' was trained on another model than 'other': sha256 50e14a16d395, not f"
    ) as caught:
        check_fit(policy, "mine", place, "--any-model")
    assert "'performance'" in caught.value.hint and "--any-model" in caught.value.hint
    assert isinstance(caught.value, BadValueError) and isinstance(caught.value, BadFileError)
    (note,) = check_fit(policy, "mine", place, strict=False)
    assert note == caught.value.message
    with pytest.raises(MisfitError, match="not known"):
        check_fit(policy, "mine", replace(place, sha256=""))
    assert check_fit(policy, "mine", replace(place, sha256=None)) == []
    policy.card["model_sha256"] = ""  # it was trained on traces that name none
    assert check_fit(policy, "mine", place) == []


def test_a_hint_names_policies_of_that_model(policy):
    shipped, policy.card["model_sha256"] = policy.card["model_sha256"], OTHER
    with pytest.raises(MisfitError) as caught:
        check_fit(policy, "mine", Place(CHIP, "it", shipped))
    for name, card in policy_cards().items():
        assert (repr(name) in caught.value.hint) == (card["chip"] == CHIP.name)


def test_another_chip_with_as_many_points_is_told_of(policy):
    (note,) = check_fit(policy, "mine", Place(load_chip("asic28-lpddr4")))
    assert note == "controller 'mine' was trained for chip asic28-sram, not asic28-lpddr4; for that there is 'dram-wall'"


def test_another_scenario_is_refused_only_where_it_is_asked_about(policy):
    voice = Scenario.load("voice")
    assert check_fit(policy, "mine", Place(voice.load_chip())) == []
    with pytest.raises(MisfitError, match="policy 'mine' was trained on scenario 'default', not this 'voice'"):
        check_fit(policy, "mine", Place(voice.load_chip(), scenario=voice), "strict=False")


def test_other_kinds_of_control_and_layer_groups_are_refused(policy):
    token = replace(policy, heads=(8, 1), signals=())
    with pytest.raises(MisfitError, match="'mine' decides per token"):
        check_fit(token, "mine", Place(CHIP, kind="layer"))
    with pytest.raises(MisfitError, match="made for 1 layer groups and there are 5"):
        check_fit(token, "mine", Place(CHIP, groups=5))


@pytest.fixture
def foreign(tmp_path, policy):
    """A policy of another model, as a file."""
    policy.card["model_sha256"] = "0" * 64
    policy.save(tmp_path / "mine.safetensors")
    return str(tmp_path / "mine.safetensors")


def board(folder: Path) -> str:
    """A chip with seven points, as a file."""
    chip = (Path(clone_rl.hw_emulator.__file__).parent / "chips" / "asic28-sram.toml").read_text()
    path = folder / "seven.toml"
    path.write_text(chip[: chip.rindex("[[operating_points]]")].replace('"asic28-sram"', '"seven"'))
    return str(path)


@pytest.mark.parametrize("entrance", ["generate", "serve", "embedded"])
def test_entrances_agree_before_a_model_is_loaded(entrance, foreign, tmp_path, capsys, monkeypatch):
    from clone_rl.cli.main import main
    from clone_rl.runtime import ControlledDecoding

    def loads(*_: object, **__: object) -> None:
        pytest.fail("the model is loaded")

    for home in ("clone_rl.llm.model", "clone_rl.runtime.host_model"):
        monkeypatch.setattr(f"{home}.load_model", loads)

    def refusal(controller: str, chip: str = "") -> str:
        if entrance == "embedded":
            changed = {"scenario": Scenario.load("default", chip=chip), "strict": False} if chip else {}
            with pytest.raises(MisfitError) as caught:
                ControlledDecoding.load(controller, "default", **changed)
            return caught.value.message
        arguments = [entrance, "--controller", controller, "--json", *(["--chip", chip] if chip else [])]
        arguments += ["--prompt", "Hi"] if entrance == "generate" else ["--port", "0"]
        assert main(arguments) == 2
        error = json.loads(capsys.readouterr().err.splitlines()[-1])["error"]
        assert error["kind"] == "bad_policy"
        return error["message"]

    assert "was trained on another model than 'default': sha256 000000000000, not 50e14a16d395" in refusal(foreign)
    assert "'default' was made for 8 operating points and seven has 7" in refusal("default", board(tmp_path))


def test_generate_runs_a_policy_of_another_model_if_asked(foreign, capsys):
    from clone_rl.cli.main import main

    asked = ["generate", "--prompt", "Hi", "--max-new-tokens", "2", "--controller", foreign, "--any-model", "--json"]
    assert main(asked) == 0
    found = capsys.readouterr()
    assert "was trained on another model than 'default'" in found.err
    assert json.loads(found.out)["generations"][0]["tokens"] == 2


def test_what_is_measured_may_differ_and_is_told_of(foreign, capsys):
    from clone_rl.cli.main import main

    asked = ["evaluate", foreign, "hot", "--chip", "asic28-lpddr4", "--scenario", "default", "--requests", "2", "--no-oracle"]
    assert main(asked) == 0
    told = capsys.readouterr().err
    assert "was trained on another model than that of traces 'default': sha256 000000000000" in told
    assert "controller 'hot' was trained for chip asic28-sram, not asic28-lpddr4" in told
