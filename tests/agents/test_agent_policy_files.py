import ast
import hashlib
import inspect
import itertools
import json

import numpy as np
import pytest

import clone_rl.agents.policy as policy_module
from clone_rl.agents.policy import Policy, policy_names
from clone_rl.agents.rollout import run_requests
from clone_rl.envs.observation import OBSERVATION
from clone_rl.errors import PolicyFileError, UnknownNameError


def make_policy(heads=(9,), seed=0, **kwargs):
    rng = np.random.default_rng(seed)
    sizes = (len(OBSERVATION), 24, 16, sum(heads))
    layers = tuple(
        (rng.normal(0, 0.5, (out, width)).astype(np.float32), rng.normal(0, 0.1, out).astype(np.float32))
        for width, out in itertools.pairwise(sizes)
    )
    return Policy(layers, heads, {"env_id": "clone_rl/LayerControl-v0"}, **kwargs)


@pytest.fixture
def path(tmp_path):
    target = tmp_path / "mine.safetensors"
    make_policy().save(target)
    return target


def edit_card(path, **changes):
    card = path.with_suffix(".json")
    kept = {k: v for k, v in (json.loads(card.read_text()) | changes).items() if v is not None}
    card.write_text(json.dumps(kept))


@pytest.mark.parametrize("heads", [(9,), (8, 8, 8, 8, 8, 5)])
def test_a_loaded_policy_acts_as_the_saved_one(tmp_path, heads):
    policy, target = make_policy(heads), tmp_path / "p.safetensors"
    policy.save(target)
    loaded = Policy.load(str(target))
    observations = np.random.default_rng(1).uniform(-1, 1, (500, len(OBSERVATION))).astype(np.float32)
    assert (loaded.logits(observations) == policy.logits(observations)).all()
    assert (loaded.act(observations) == policy.act(observations)).all()
    assert len(np.unique(policy.act(observations)[:, 0])) > 2
    assert (loaded.heads, loaded.kind, loaded.macs, loaded.probes) == (policy.heads, policy.kind, policy.macs, True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p.json", "p.safetensors"]


def test_actions_are_the_largest_logit_of_each_component():
    policy = make_policy((3, 2))
    observations = np.random.default_rng(1).uniform(-1, 1, (50, len(OBSERVATION))).astype(np.float32)
    logits = policy.logits(observations)
    assert (policy.act(observations) == np.stack([logits[:, :3].argmax(1), logits[:, 3:].argmax(1)], 1)).all()


def test_logits_are_those_of_a_tanh_perceptron():
    policy, x = make_policy(), np.linspace(-1, 1, len(OBSERVATION))
    for index, (weight, bias) in enumerate(policy.layers):
        x = weight.astype(float) @ x + bias
        x = np.tanh(x) if index < 2 else x
    np.testing.assert_allclose(policy.logits(np.linspace(-1, 1, 16)[None].astype(np.float32))[0], x, rtol=1e-4, atol=1e-5)
    assert policy.macs == 16 * 24 + 24 * 16 + 16 * 9
    assert policy.parameters == policy.macs + 24 + 16 + 9


def test_a_policy_is_found_by_its_card_or_its_folder(path):
    folder = path.parent / "run"
    folder.mkdir()
    make_policy(seed=2).save(folder / "policy.safetensors")
    assert Policy.load(str(path.with_suffix(".json"))).card["sha256"] == Policy.load(str(path)).card["sha256"]
    assert Policy.load(str(folder)).parameters == make_policy().parameters


def test_a_policy_that_does_not_probe_says_so_in_its_file(tmp_path):
    make_policy(probes=False).save(tmp_path / "p.safetensors")
    assert Policy.load(str(tmp_path / "p.safetensors")).probes is False


def test_a_policy_controls_requests_and_pays_for_itself(control):
    documents = control.traces.documents("test")
    result = run_requests(control, make_policy(), "test", documents, 0)
    assert (result["policy_j"] > 0).all()
    blind = run_requests(control, make_policy(probes=False), "test", documents, 0)
    assert not blind["probe_j"].any()
    token = run_requests(control, make_policy((8, 8, 8, 8, 8, 5)), "test", documents, 0)
    assert (token["document"] == documents).all()


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_truncated_file_is_refused(path, keep):
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(PolicyFileError, match="truncated or altered"):
        Policy.load(str(path))


@pytest.mark.parametrize("at", [0, 40, -1])
def test_an_altered_byte_is_refused(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(PolicyFileError, match="hash"):
        Policy.load(str(path))


@pytest.mark.parametrize("data", [b"", b"\x80\x04N.", b"{}" * 50])
def test_a_file_with_the_right_hash_and_the_wrong_content_is_refused(path, data):
    path.write_bytes(data)
    edit_card(path, sha256=hashlib.sha256(data).hexdigest())
    with pytest.raises(PolicyFileError):
        Policy.load(str(path))


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"sha256": "0" * 64}, id="wrong hash"),
        pytest.param({"sha256": None}, id="no hash"),
        pytest.param({"observation": [*OBSERVATION[1:], OBSERVATION[0]]}, id="observation in another order"),
        pytest.param({"observation": list(OBSERVATION[:-1])}, id="a scalar short"),
        pytest.param({"observation": None}, id="no observation"),
        pytest.param({"format": 2}, id="another format"),
        pytest.param({"format": None}, id="no format"),
        pytest.param({"heads": None}, id="no heads"),
        pytest.param({"heads": [8]}, id="too few actions"),
        pytest.param({"heads": ["a"]}, id="heads of text"),
        pytest.param({"heads": [10, -1]}, id="negative head"),
    ],
)
def test_a_card_that_does_not_fit_is_refused(path, changes):
    edit_card(path, **changes)
    with pytest.raises(PolicyFileError):
        Policy.load(str(path))


@pytest.mark.parametrize("content", [b"{", b"[]", b"null", b"\xff\xfe"], ids=["cut", "list", "null", "binary"])
def test_a_card_that_is_no_card_is_refused(path, content):
    path.with_suffix(".json").write_bytes(content)
    with pytest.raises(PolicyFileError, match=r"mine\.json"):
        Policy.load(str(path))


@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
def test_either_file_missing_is_named(path, suffix):
    path.with_suffix(suffix).unlink()
    with pytest.raises(PolicyFileError, match=rf"mine\{suffix}"):
        Policy.load(str(path))


def test_a_folder_without_a_policy_is_refused(tmp_path):
    with pytest.raises(PolicyFileError, match=r"policy\.safetensors"):
        Policy.load(str(tmp_path))


def test_an_unknown_policy_is_refused():
    with pytest.raises(UnknownNameError, match="policy"):
        Policy.load("nobody-trained-this")


def test_an_unknown_policy_gets_a_suggestion(monkeypatch):
    monkeypatch.setattr(policy_module, "policy_names", lambda: ["layer-sram", "token-sram"])
    with pytest.raises(UnknownNameError, match="did you mean 'layer-sram'"):
        Policy.load("layer-sran")


def test_shipped_policies_load():
    for name in policy_names():
        assert Policy.load(name).name == name


def test_a_policy_that_diverged_is_refused():
    layers = tuple((np.full_like(weight, np.nan), bias) for weight, bias in make_policy().layers)
    with pytest.raises(PolicyFileError, match="not finite"):
        Policy(layers, (9,))


@pytest.mark.parametrize(
    "layers",
    [
        pytest.param((), id="none"),
        pytest.param(make_policy().layers[1:], id="first missing"),
        pytest.param(make_policy().layers[:-1], id="last missing"),
        pytest.param(((np.zeros((9, 16), np.float32), np.zeros(8, np.float32)),), id="bias too short"),
        pytest.param(((np.zeros(16, np.float32), np.zeros(9, np.float32)),), id="a vector of weights"),
    ],
)
def test_layers_that_do_not_follow_each_other_are_refused(layers):
    with pytest.raises(PolicyFileError):
        Policy(tuple(layers), (9,))


def test_loading_a_policy_uses_nothing_that_runs_code_from_the_file():
    tree = ast.parse(inspect.getsource(policy_module))
    imported = {alias.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names}
    imported |= {n.module.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module}
    called = {n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
    assert not imported & {"pickle", "cloudpickle", "dill", "joblib", "torch", "marshal", "shelve"}
    assert not called & {"eval", "exec", "compile", "__import__"}
