"""A policy of one's own scenario and chip goes wherever a policy goes, when the files of both are gone."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import clone_rl.envs
import clone_rl.hw_emulator
from clone_rl.agents.train_config import TrainConfig
from clone_rl.agents.training import train
from clone_rl.cli.main import main
from clone_rl.errors import MisfitError
from clone_rl.hw_emulator import load_chip
from clone_rl.llm.model import load_model
from clone_rl.runtime import ControlledDecoding, RuntimeController, pipeline

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def lm():
    return load_model("default")


@pytest.fixture(scope="module")
def kiosk(tmp_path_factory, trace_folder):
    """Run folder of a policy whose scenario, chip and first place are no more."""
    home = tmp_path_factory.mktemp("home")
    packages = {name: Path(package.__file__).parent for name, package in (("e", clone_rl.envs), ("h", clone_rl.hw_emulator))}
    chip = (packages["h"] / "chips" / "asic28-sram.toml").read_text().replace('"asic28-sram"', '"kiosk-chip"')
    (home / "chip.toml").write_text(chip[: chip.rindex("[[operating_points]]")])  # seven points
    scenario = (packages["e"] / "scenarios" / "default.toml").read_text().replace('name = "default"', 'name = "kiosk"')
    (home / "kiosk.toml").write_text(scenario.replace('"asic28-sram"', '"chip.toml"'))
    config = TrainConfig(scenario=str(home / "kiosk.toml"), traces=trace_folder, steps=256, envs=4, rollout=32)
    train(config, home / "runs" / "kiosk")
    moved = tmp_path_factory.mktemp("elsewhere") / "kiosk"
    shutil.copytree(home / "runs" / "kiosk", moved)
    shutil.rmtree(home)
    return moved


def answered(controller, lm, **asked):
    prompt = torch.tensor([lm.encode("Once upon a time")])
    lm.model.generate(prompt, custom_generate=controller, max_new_tokens=4, do_sample=False, **asked)
    return controller.report()


def test_it_is_embedded(kiosk, lm):
    for name in (str(kiosk), kiosk, str(kiosk / "policy.safetensors")):
        controller = ControlledDecoding.load(name, lm)
        assert (controller.scenario.name, controller.emulator.chip.name) == ("kiosk", "kiosk-chip")
    assert answered(controller, lm, slo="chatbot")["targets"] == {"ttft_s": 20e-3, "tpot_s": 0.6e-3}
    generator = pipeline(model="default", controller=str(kiosk))
    assert generator("Once", max_new_tokens=2)[0]["report"]["tokens"] <= 2


def test_it_decides_in_a_loop_of_ones_own(kiosk):
    assert RuntimeController.load(str(kiosk)).points == 7


def test_it_is_exported_from_another_folder(kiosk, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(kiosk), "--to", "c", "--observations", "300", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["scenario"], found["agreement"]) == ("kiosk", 1.0)


@pytest.mark.parametrize("command", ["serve", "generate"])
def test_it_serves_and_generates(command, kiosk, monkeypatch, capsys):
    served = []
    monkeypatch.setattr("clone_rl.runtime.server.run.run", lambda service, _: served.append(service.state()["chip"]))
    asked = {"serve": ["--port", "0"], "generate": ["--prompt", "Hi", "--max-new-tokens", "2"]}[command]
    assert main([command, "--controller", str(kiosk), *asked, "--json"]) == 0, capsys.readouterr().err
    assert served == (["kiosk-chip"] if command == "serve" else [])


def test_a_chip_can_be_given_by_name_by_file_and_as_an_object(kiosk, lm, tmp_path):
    path = tmp_path / "mine.toml"
    text = (Path(clone_rl.hw_emulator.__file__).parent / "chips" / "asic28-lpddr4.toml").read_text()
    path.write_text(text.replace('"asic28-lpddr4"', '"mine"'))
    for chip, name in (("asic28-lpddr4",) * 2, (str(path), "mine"), (path, "mine"), (load_chip(str(path)), "mine")):
        controller = ControlledDecoding.load("performance", lm, chip=chip)
        assert controller.emulator.chip.name == name
    assert ControlledDecoding.load("default", lm, chip=load_chip("asic28-sram")).scenario.name == "default"
    with pytest.raises(MisfitError, match="trained on scenario 'default', not this 'default' with another chip"):
        ControlledDecoding.load("default", lm, chip="asic28-lpddr4")
    assert ControlledDecoding.load("default", lm, chip="asic28-lpddr4", strict=False).requests == 0
    with pytest.raises(MisfitError, match="made for 7 operating points and asic28-sram has 8"):
        ControlledDecoding.load(kiosk, lm, chip="asic28-sram", strict=False)
    generator = pipeline(controller="performance", chip=path)
    assert generator.controller.emulator.chip.name == "mine"
