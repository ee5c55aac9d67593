import hashlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import clone_rl.agents
import clone_rl.hw_emulator
import clone_rl.llm
from clone_rl.envs.observation import OBSERVATION
from clone_rl.llm.model import load_model

pytest_plugins = ["cli_running"]

POLICIES = Path(clone_rl.agents.__file__).parent / "policies"
EMBEDDED = Path(clone_rl.llm.__file__).parent / "embedded"
GENERATE = ("generate", "--prompt", "hello", "--max-new-tokens", "2")
GOVERNED = ("generate", "--controller", "performance", "--max-new-tokens", "2")


def check(run_cli, snapshot, arguments, kind, message, hint, code=2):
    """The command fails with a sentence, as JSON too, and leaves the folder as it was."""
    before = snapshot()
    done = run_cli(*arguments)
    assert done.code == code
    assert done.out == ""
    said = done.err[done.err.index("clone-rl: ") :].splitlines()
    assert message in said[0]
    assert hint in "\n".join(said[1:])
    assert len(said) <= 2
    assert "Traceback" not in done.err
    failed = run_cli(*arguments, "--json")
    assert failed.code == code
    assert failed.error["kind"] == kind
    assert message in failed.error["message"]
    assert hint in failed.error["hint"]
    assert snapshot() == before


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (("evaluate", "performance", "--chip", "asic28-srm"), "unknown chip 'asic28-srm'", "did you mean 'asic28-sram'?"),
        (("evaluate", "performance", "--scenario", "defualt"), "unknown scenario 'defualt'", "did you mean 'default'?"),
        (("evaluate", "performance", "--traces", "zzz"), "unknown trace set 'zzz'", "known: default"),
        (("evaluate", "performance", "--split", "tests"), "unknown split 'tests'", "did you mean 'test'?"),
        (("evaluate", "performanc"), "unknown controller 'performanc'", "did you mean 'performance'?"),
        (("evaluate", "performance", "pase"), "unknown controller 'pase'", "did you mean 'pace'?"),
        ((*GENERATE, "--controller", "powersafe"), "unknown controller 'powersafe'", "did you mean 'powersave'?"),
        ((*GOVERNED, "--prompt", "hi", "--model", "defaults"), "unknown model 'defaults'", "did you mean 'default'?"),
        ((*GOVERNED, "--prompt", "hi", "--chip", "zzz"), "unknown chip 'zzz'", "known: asic28-lpddr4, asic28-sram"),
        ((*GOVERNED, "--prompt", "hi", "--slo", "chatbots"), "unknown service level 'chatbots'", "did you mean 'chatbot'?"),
        (("record", "--out", "traces", "--model", "zzz"), "unknown model 'zzz'", "did you mean"[:0]),
        (
            ("train", "--env-id", "clone_rl/LayerContol-v0"),
            "unknown environment 'clone_rl/LayerContol-v0'",
            "did you mean 'clone_rl/LayerControl-v0'?",
        ),
        (("train", "--scenario", "defaul"), "unknown scenario 'defaul'", "did you mean 'default'?"),
        (("train", "--chip", "asic28-sramm"), "unknown chip 'asic28-sramm'", "did you mean 'asic28-sram'?"),
    ],
)
def test_unknown_names_get_a_suggestion(run_cli, snapshot, arguments, message, hint):
    check(run_cli, snapshot, arguments, "unknown_name", message, hint)


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (("evaluate", "performance", "performance"), "performance, performance", "once"),
        (("evaluate", "performance", "--repeats", "0"), "repeats is 0", "at least 1"),
        (("evaluate", "performance", "--max-miss", "-0.1"), "limit miss is -0.1", "0 or more"),
        (("evaluate", "performance", "--seed", "-1"), "-1", "0 or more"),
        ((*GOVERNED, "--prompt", " "), "the prompt is empty", "write something"),
        ((*GOVERNED, "--prompt", "7" * 400), "401 tokens and the context 256", "at most 255 tokens"),
        ((*GOVERNED, "--prompt", "hi", "--max-new-tokens", "0"), "max_new_tokens is 0", "at least 1"),
        ((*GOVERNED, "--prompt", "hi", "--top-k", "-2"), "top_k is -2", "at least 1"),
        ((*GOVERNED, "--prompt", "hi", "--temperature", "-1"), "temperature is -1.0", "0 (greedy) or more"),
        (("record", "--out", "t", "--train", "0", "--validation", "0", "--test", "0"), "no prompts", "at least one"),
        (("record", "--out", "t", "--train", "5000"), "5000 prompts of each kind", "1 to 2000"),
        (("train", "--steps", "0"), "steps is 0", "at least 1"),
        (("train", "--envs", "-3"), "envs is -3", "at least 1"),
        (("train", "--envs", "1", "--rollout", "1", "--steps", "1"), "rollout", ""),
        (("train", "--seed", "-1"), "seed is -1", "0 or more"),
        (("train", "--max-miss", "-1"), "limit miss is -1", "0 or more"),
        (("train", "--max-dnll", "nan"), "limit dnll is nan", "0 or more"),
        (("demo", "--steps", "0"), "steps is 0", "at least 1"),
        (("demo", "--prompt", ""), "the prompt is empty", "write something"),
        (("demo", "--prompt", "7" * 400), "401 tokens", "at most 255 tokens"),
        (("pretrain", "--text", ".", "--out", "m", "--minutes", "0"), "minutes is 0", "more than 0"),
    ],
)
def test_values_out_of_range_are_refused_before_anything_is_written(run_cli, snapshot, arguments, message, hint):
    check(run_cli, snapshot, arguments, "bad_value", message, hint)


def test_a_demo_that_could_not_generate_is_refused_before_it_trains(run_cli, snapshot, monkeypatch):
    def train(*_, **__):
        raise AssertionError("training began")

    monkeypatch.setattr("clone_rl.cli.commands.run_training", train)
    check(run_cli, snapshot, ("demo", "--max-new-tokens", "0"), "bad_value", "max_new_tokens is 0", "at least 1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "COMMAND"),
        (("evaluat", "pace"), "invalid choice: 'evaluat'"),
        (("evaluate",), "CONTROLLER"),
        (("evaluate", "pace", "--sead", "3"), "--sead"),
        (("train", "--steps", "many"), "invalid int value: 'many'"),
        (("train", "--learning-rate", "3"), "--learning-rate"),
        (("generate",), "--prompt"),
        (("generate", "--prompt", "a", "--prompt-file", "b"), "not allowed with"),
        (("record",), "--out"),
        (("pretrain", "--out", "m"), "--text"),
    ],
)
def test_bad_usage_is_an_error_like_any_other(run_cli, snapshot, arguments, message):
    check(run_cli, snapshot, arguments, "bad_value", message, "--help")


PROMPT_FILES = {
    "missing.txt": (None, "no such prompt file", ""),
    "empty.txt": (b"", "has no prompts", "one prompt a line"),
    "binary.txt": (b"\x89PNG\x00\xff", "is not a text file", "UTF-8"),
    "broken.jsonl": (b'{"prompt": "fine"}\n{"prompt": "half\n', "broken.jsonl, line 2: not JSON", ""),
    "without.jsonl": (
        b'{"prompt": "fine"}\n\n{"text": "x"}\n',
        "without.jsonl, line 3: no 'prompt' string",
        '{"prompt": "..."}',
    ),
}


@pytest.mark.parametrize("name", PROMPT_FILES)
@pytest.mark.parametrize("command", ["generate", "record"])
def test_prompt_files_that_hold_no_prompts_are_refused(run_cli, snapshot, here, command, name):
    content, message, hint = PROMPT_FILES[name]
    if content is not None:
        (here / name).write_bytes(content)
    arguments = (
        (*GOVERNED, "--prompt-file", name) if command == "generate" else ("record", "--out", "t", "--prompt-file", name)
    )
    check(run_cli, snapshot, arguments, "bad_file", message, hint)


def test_a_prompt_that_is_too_long_is_refused_before_any_other_is_answered(run_cli, snapshot, here):
    (here / "prompts.txt").write_text("hello\n" + "7" * 300)
    check(run_cli, snapshot, (*GOVERNED, "--prompt-file", "prompts.txt"), "bad_value", "301 tokens", "at most 255")
    arguments = ("record", "--out", "t", "--prompt-file", "prompts.txt", "--max-new-tokens", "2")
    check(run_cli, snapshot, arguments, "bad_value", "301 tokens", "at most 255")


def test_a_failed_generation_gives_the_model_back(run_cli):
    layers = load_model("default").model.model.layers
    assert not any("forward" in layer.__dict__ for layer in layers)
    assert run_cli(*GOVERNED, "--prompt", "7" * 400).code == 2
    assert run_cli(*GOVERNED, "--prompt", "hi", "--max-new-tokens", "0").code == 2
    assert not any("forward" in layer.__dict__ for layer in layers)


@pytest.fixture
def policy(here):
    """A copy of the shipped policy."""
    for suffix in (".json", ".safetensors"):
        shutil.copyfile(POLICIES / f"default{suffix}", here / f"mine{suffix}")
    return here / "mine.safetensors"


def truncate(path):
    path.write_bytes(path.read_bytes()[:200])


def alter(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def edit_card(path, **changes):
    card = path.with_suffix(".json")
    card.write_text(json.dumps(json.loads(card.read_text()) | changes))


def other_observation(path):
    edit_card(path, observation=[*OBSERVATION[1:], "weather"])


def other_format(path):
    edit_card(path, format=99)


def no_card(path):
    path.with_suffix(".json").unlink()


def broken_card(path):
    path.with_suffix(".json").write_text("{")


def not_weights(path):
    path.write_bytes(b"not weights")
    edit_card(path, sha256=hashlib.sha256(b"not weights").hexdigest())


def other_heads(path):
    edit_card(path, heads=[5])


@pytest.mark.parametrize(
    ("damage", "message", "hint"),
    [
        (truncate, "does not match the hash", "truncated or altered"),
        (alter, "does not match the hash", "truncated or altered"),
        (other_observation, "made for another observation", "train it again"),
        (other_format, "not a policy card of format 1", ""),
        (no_card, "no policy file mine.json", "beside it"),
        (broken_card, "is not a policy card", ""),
        (not_weights, "is not a policy", ""),
        (other_heads, "action components (5,)", ""),
    ],
)
def test_damaged_policies_are_refused(run_cli, snapshot, policy, damage, message, hint):
    damage(policy)
    check(run_cli, snapshot, ("evaluate", "mine.safetensors"), "bad_policy", message, hint)
    check(run_cli, snapshot, (*GENERATE, "--controller", "mine.safetensors"), "bad_policy", message, hint)


def test_a_policy_for_another_chip_is_refused(run_cli, snapshot, here, policy):
    chip = (Path(clone_rl.hw_emulator.__file__).parent / "chips" / "asic28-sram.toml").read_text()
    (here / "seven.toml").write_text(chip[: chip.rindex("[[operating_points]]")].replace('"asic28-sram"', '"seven"'))
    arguments = ("evaluate", "mine.safetensors", "--chip", "seven.toml")
    check(run_cli, snapshot, arguments, "bad_policy", "made for 8 operating points and seven has 7", "train one for this chip")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("evaluate", "none/policy.safetensors"), "no policy file none/policy.safetensors"),
        (("evaluate", "folder"), "no policy file folder/policy.safetensors"),
    ],
)
def test_missing_policies_are_named(run_cli, snapshot, here, arguments, message):
    (here / "folder").mkdir()
    check(run_cli, snapshot, arguments, "bad_policy", message, "beside it")


@pytest.mark.parametrize("command", [("train", "--runs", ".", "--name", "old"), ("demo", "--runs", ".", "--name", "old")])
def test_a_run_is_never_overwritten(run_cli, snapshot, here, command):
    (here / "old").mkdir()
    (here / "old" / "policy.safetensors").write_text("precious")
    check(run_cli, snapshot, command, "run_exists", "run folder old exists", "--name")


@pytest.mark.parametrize(
    "arguments",
    [
        ("evaluate", "performance", "--out", "taken"),
        (*GOVERNED, "--prompt", "hi", "--picture", "taken"),
        ("record", "--prompt-file", "prompts.txt", "--out", "taken", "--max-new-tokens", "2"),
        ("pretrain", "--text", ".", "--out", "taken"),
    ],
)
def test_no_output_is_overwritten(run_cli, snapshot, here, arguments):
    (here / "taken").write_text("precious")
    (here / "prompts.txt").write_text("hello")
    check(run_cli, snapshot, arguments, "bad_file", "taken exists", "choose another")


@pytest.mark.parametrize(
    "arguments",
    [
        ("evaluate", "performance", "--out", "none/rows.csv"),
        ("evaluate", "performance", "--out", "file/rows.csv"),
        (*GOVERNED, "--prompt", "hi", "--picture", "none/p.png"),
        ("record", "--prompt-file", "prompts.txt", "--out", "file/traces", "--max-new-tokens", "2"),
        ("train", "--runs", "file"),
        ("train", "--resume", "file"),
        ("train", "--resume", "none"),
        ("train", "--resume", "empty"),
    ],
)
def test_places_that_cannot_be_written_or_read_are_named(run_cli, snapshot, here, arguments):
    (here / "file").write_text("a file")
    (here / "empty").mkdir()
    (here / "prompts.txt").write_text("hello")
    place = next(a.partition("/")[0] for a in arguments if a.partition("/")[0] in ("file", "none", "empty"))
    check(run_cli, snapshot, arguments, "bad_file", place, "")


@pytest.mark.parametrize("content", ["[]", "{}", '{"train": {"stepz": 1}}', '{"train": 3}', "{"])
def test_a_run_without_a_usable_configuration_cannot_be_resumed(run_cli, snapshot, here, content):
    (here / "run").mkdir()
    (here / "run" / "config.json").write_text(content)
    check(run_cli, snapshot, ("train", "--resume", "run"), "bad_file", "config.json", "")


@pytest.mark.parametrize("option", ["--chip", "--scenario"])
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [("none.toml", None, "no such"), ("half.toml", "x = [", "is not a"), ("odd.toml", "colour = 3", "odd.toml: ")],
)
def test_broken_toml_files_are_named(run_cli, snapshot, here, option, name, content, message):
    if content is not None:
        (here / name).write_text(content)
    check(run_cli, snapshot, ("evaluate", "performance", option, name), "bad_file", message, "")


@pytest.mark.parametrize("missing", ["card.json", "signal.npy"])
def test_incomplete_traces_are_refused(run_cli, snapshot, here, trace_folder, missing):
    shutil.copytree(trace_folder, here / "traces")
    (here / "traces" / missing).unlink()
    check(run_cli, snapshot, ("evaluate", "performance", "--traces", "traces"), "bad_file", f"no {missing}", "record")


def test_an_incomplete_model_is_refused(run_cli, snapshot, here):
    shutil.copytree(EMBEDDED, here / "half")
    (here / "half" / "config.json").unlink()
    arguments = (*GOVERNED, "--prompt", "hi", "--model", "half")
    check(run_cli, snapshot, arguments, "bad_file", "half is not a model folder: no config.json", "")


@pytest.mark.parametrize("changes", [("--split", "tests"), ("--max-new-tokens", "0")])
def test_records_that_cannot_be_made_are_refused(run_cli, snapshot, here, changes):
    (here / "prompts.txt").write_text("hello")
    before = snapshot()
    failed = run_cli("record", "--prompt-file", "prompts.txt", "--out", "t", "--max-new-tokens", "2", *changes, "--json")
    assert failed.code == 2
    assert changes[1] in failed.error["message"]
    assert snapshot() == before


@pytest.mark.parametrize(
    ("text", "resume", "message"),
    [("none", False, "no such folder: none"), ("thin", False, "too little text"), ("thin", True, "no checkpoint")],
)
def test_pretraining_without_text_or_checkpoint_leaves_nothing(run_cli, snapshot, here, text, resume, message):
    (here / "thin").mkdir()
    (here / "thin" / "one.txt").write_text("word " * 60)
    arguments = ("pretrain", "--text", text, "--out", "model", *(["--resume"] if resume else []))
    check(run_cli, snapshot, arguments, "bad_file", message, "")


def test_a_missing_package_is_named_with_the_extra_that_has_it(run_cli, snapshot, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    check(run_cli, snapshot, ("evaluate", "default"), "missing_extra", "safetensors", "pip install 'clone-rl[")


def test_an_interrupt_is_not_a_traceback(run_cli, snapshot, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("clone_rl.envs.control.load_control", interrupted)
    before = snapshot()
    done = run_cli("evaluate", "performance")
    assert (done.code, done.out) == (130, "")
    assert done.err == "clone-rl: interrupted\n"
    assert snapshot() == before


HUGE = "9" * 25


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (("evaluate", "performance", "--seeds", HUGE), "is out of range", "--help"),
        (("evaluate", "performance", "--repeats", HUGE), "is out of range", "--help"),
        (("tune", "slack", "--trials", HUGE), "is out of range", "--help"),
        (("train", "--envs", HUGE), "is out of range", "--help"),
        (("train", "--envs", "100000", "--rollout", "100000"), "envs x rollout is 10000000000", "at most"),
        (("study", "unseen", "performance", "--requests", "-1"), "requests is -1", "at least 1"),
        (("study", "unseen", "performance", "--requests", "0"), "requests is 0", "at least 1"),
    ],
)
def test_numbers_that_nothing_can_be_done_so_often_are_refused(run_cli, snapshot, arguments, message, hint):
    check(run_cli, snapshot, arguments, "bad_value", message, hint)


def test_settings_that_are_named_are_read_whoever_is_asked_for(run_cli, snapshot):
    check(
        run_cli, snapshot, ("evaluate", "performance", "--tuned", "none.json"), "bad_file", "no such file: none.json", "tune"
    )


@pytest.mark.parametrize("arguments", [("chip", "show", "folder.toml"), ("train", "--scenario", "folder.toml")])
def test_a_folder_in_the_place_of_a_file_is_told_without_numbers_of_the_system(run_cli, snapshot, here, arguments):
    (here / "folder.toml").mkdir()
    check(run_cli, snapshot, arguments, "bad_file", "file: Is a directory", "")
    assert "Errno" not in run_cli(*arguments).err


def test_a_folder_does_not_hide_the_policy_that_ships(run_cli, here):
    (here / "default").mkdir()
    assert run_cli("evaluate", "default", "--requests", "1", "--no-oracle", "--json").json["rows"][0]["name"] == "default"
    (here / "mine").mkdir()
    assert run_cli("evaluate", "mine", "--no-oracle", "--json").error["kind"] == "bad_policy"


def test_python_objects_in_a_trace_set_are_refused_in_words_for_people(run_cli, traces, here):
    traces.save(here / "odd")
    np.save(here / "odd" / "kl.npy", np.array([{}], object), allow_pickle=True)
    error = run_cli("evaluate", "performance", "--traces", "odd", "--no-oracle", "--json").error
    assert "Python objects" in error["message"]
    assert "allow_pickle" not in str(error)
