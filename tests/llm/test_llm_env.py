"""The model in the loop, made by name."""

import copy
import json
import pickle
import subprocess
import sys
import warnings
from dataclasses import replace
from importlib import resources

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from tiny_lm import tiny_language_model

import clone_rl.envs.live as live_module
import clone_rl.llm.model as model_module
from clone_rl.agents.heuristics import Fixed
from clone_rl.envs import ENV_IDS, LIVE_ID
from clone_rl.envs.live import LiveLayerControlEnv
from clone_rl.envs.scenario import Scenario
from clone_rl.envs.state import AMOUNTS
from clone_rl.errors import BadFileError, BadValueError, CloneRLError, UnknownNameError
from clone_rl.hw_emulator.precision import PRECISIONS
from clone_rl.llm.documents import Document
from clone_rl.llm.live import LiveSession
from clone_rl.llm.sampling import Sampling
from clone_rl.llm.source import ModelSource
from clone_rl.runtime import Decision, RuntimeController

pytest_plugins = ["llm_models"]

PROMPTS = ["Once upon a time there was a little fox who", "The old king had three sons, and"]
REGISTERED = sorted(name for name in gym.registry if name.startswith("clone_rl/"))


@pytest.fixture(scope="module")
def tiny_lm():
    """The small model, with number formats that a chip can be charged for."""
    lm = tiny_language_model()
    return replace(lm, shape=replace(lm.shape, precision=PRECISIONS["int8"]))


class EnergyOnly:
    terms = ("energy",)

    def __call__(self, amounts):
        return -amounts[:, [AMOUNTS.index("energy")]]


def late_only(amounts):
    return amounts[:, [AMOUNTS.index("late")]]


def make(**changes):
    return gym.make(LIVE_ID, **{"prompts": PROMPTS, "max_new_tokens": 6, **changes})


def tiny_env(lm, **changes):
    """The same on the small model, where a request takes milliseconds; its prompts are of 5, 50 and 90 tokens."""
    documents = [Document("user", "test", tuple(range(1, n + 1)), n, sampled=True) for n in (5, 50, 90)]
    return LiveLayerControlEnv(ModelSource(lm, documents, max_new_tokens=8), lm.shape, **changes)


def play(env, seed=None, document=None, choose=0):
    """Everything that is seen of one request under random actions."""
    options = {} if document is None else {"document": document}
    rng, done = np.random.default_rng(choose), False
    observation, _ = env.reset(seed=seed, options=options)
    seen, rewards, costs = [observation], [], []
    while not done:
        observation, reward, done, truncated, info = env.step(int(rng.integers(env.action_space.n)))
        assert env.observation_space.contains(observation)
        assert not truncated
        seen.append(observation)
        rewards.append(reward)
        costs.append(info["cost"])
        assert ("figures" in info) == ("kpis" in info) == done
    return np.array(seen), np.array(rewards), np.array(costs), info


def test_every_id_is_replay_or_live():
    assert {*ENV_IDS, LIVE_ID} == set(REGISTERED)


@pytest.mark.parametrize("env_id", REGISTERED)
def test_gymnasiums_checker_has_nothing_to_say(env_id):
    env = gym.make(env_id, render_mode="ansi").unwrapped
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env)


def test_the_defaults_are_the_embedded_model_and_its_training_prompts(lm):
    env = gym.make(LIVE_ID)
    assert env.unwrapped.source.lm is lm
    assert env.unwrapped.source.max_new_tokens == 80
    assert env.unwrapped.source.sampling == Sampling(0.8, 40)
    assert env.unwrapped.control.scenario == Scenario.load("default")
    replay = gym.make("clone_rl/LayerControl-v0")
    assert env.observation_space == replay.observation_space
    assert env.action_space == replay.action_space
    assert play(env, 0)[3].keys() == play(replay, 0)[3].keys() == {"cost", "figures", "kpis"}


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_split_has_the_prompts_that_the_shipped_traces_were_recorded_from(split):
    live, replay = gym.make(LIVE_ID, split=split).unwrapped, gym.make("clone_rl/LayerControl-v0", split=split).unwrapped
    traces = replay.control.traces
    chosen = traces.documents(split)
    assert [d.prompt_tokens for d in live.source.documents] == traces.prompt_tokens[chosen].tolist()
    assert [d.kind for d in live.source.documents] == [traces.kinds[kind] for kind in traces.kind[chosen]]
    # The same seed draws the same request of them.
    for seed in range(3):
        live.reset(seed=seed)
        replay.reset(seed=seed)
        for _ in range(2):
            one, other = live.request.rows.state[0], replay._rows.state[0]
            assert chosen[one["document"]] == other["document"]
            for name in ("slo", "due_s", "tpot_s", "busy", "prompt"):
                assert one[name] == other[name]
            live.reset()
            replay.reset()


def test_a_specification_survives_json():
    env = make(scenario="hot", kv="exact", temperature=0.0, top_k=3, interference={"slowdown": 2.0}, signals=["margin"])
    text = env.spec.to_json()
    assert json.loads(text)["kwargs"]["prompts"] == PROMPTS
    again = gym.make(EnvSpec.from_json(text))
    assert again.unwrapped.control.scenario == env.unwrapped.control.scenario
    assert again.unwrapped.control.scenario.interference.slowdown == 2.0
    assert again.unwrapped.source.sampling == Sampling(0.0, 3)
    one, other = play(env, 3), play(again, 3)
    assert one[0].tobytes() == other[0].tobytes()
    assert one[3]["figures"] == other[3]["figures"]


def test_a_model_is_named_by_its_folder():
    env = make(model=str(resources.files("clone_rl.llm") / "embedded"))
    assert play(env, 1)[0].tobytes() == play(make(), 1)[0].tobytes()


def test_a_request_is_that_of_a_session_under_the_same_decisions(lm):
    class Same:
        def __init__(self, top):
            self.rng, self.top, self.seen = np.random.default_rng(0), top, []

        def decide(self, observation):
            self.seen.append(observation.copy())
            action = int(self.rng.integers(self.top + 2))
            return Decision(self.top, exit=True) if action > self.top else Decision(action)

        def observe(self, cost):
            pass

    env = make(max_new_tokens=20, temperature=0.5, top_k=10).unwrapped
    session = LiveSession(lm, Scenario.load("default"))
    for seed in range(4):
        controller = Same(env.action_space.n - 2)
        document = seed % 2
        answer = session.generate(PROMPTS[document], controller, 20, Sampling(0.5, 10), seed)
        seen, _, _, info = play(env, seed, document)
        assert env.source.tokens == answer.token_ids
        assert seen[:-1].tobytes() == np.array(controller.seen).tobytes()
        assert info["figures"] == {**answer.figures, "document": document}
        assert env.request.points[: len(answer.points)].tolist() == answer.points.tolist()
        assert env.request.ledger.counts() == answer.ledger.counts()


def test_the_same_seed_is_the_same_episode_and_the_next_one_samples_anew(tiny_lm):
    env = tiny_env(tiny_lm)
    found = []
    for seed in (4, None, None, 4, None, None, 5):
        play(env, seed, document=0)
        found.append(tuple(env.source.tokens))
    assert found[:3] == found[3:6]
    assert len(set(found[:3])) == 3
    assert found[6] != found[0]
    first = play(env, 7)
    again = play(env, 7)
    assert all(one.tobytes() == other.tobytes() for one, other in zip(first[:3], again[:3], strict=True))
    assert first[3]["figures"] == again[3]["figures"]


def test_documents_are_drawn_and_asked_for(tiny_lm):
    env = tiny_env(tiny_lm)
    assert {play(env, seed)[3]["figures"]["document"] for seed in range(20)} == {0, 1, 2}
    for document in (0, 1, np.int64(2)):
        assert play(env, 0, document)[3]["figures"]["document"] == document
        assert env.request.rows.state[0]["prompt"] == (5, 50, 90)[document]


def test_price_tables_are_built_once_and_are_as_good_when_they_grow(tiny_lm, monkeypatch):
    built = []

    def counted(emulators, prompt, context):
        built.append(context)
        return price_list(emulators, prompt, context)

    price_list = live_module.price_list
    monkeypatch.setattr(live_module, "price_list", counted)
    env = tiny_env(tiny_lm, kv="propagate")
    whole = [play(env, seed, seed % 3) for seed in range(6)]
    assert built == [256]
    built.clear()
    monkeypatch.setattr(live_module, "_CONTEXT", 2)
    env = tiny_env(tiny_lm, kv="propagate")
    grown = [play(env, seed, seed % 3) for seed in range(6)]
    assert built == [2, 16, 64, 128]
    for one, other in zip(whole, grown, strict=True):
        assert one[0].tobytes() == other[0].tobytes()
        assert one[1].tobytes() == other[1].tobytes()
        assert one[3]["figures"] == other[3]["figures"]


def test_a_session_builds_its_tables_once(lm, monkeypatch):
    built = []
    price_list = live_module.price_list
    monkeypatch.setattr(live_module, "price_list", lambda *a: built.append(a) or price_list(*a))
    session = LiveSession(lm, Scenario.load("default"))

    top = RuntimeController(Fixed("performance", 7), 8)
    for seed in range(3):
        session.generate(PROMPTS[0] * (seed + 1), top, 2, seed=seed)
    assert len(built) == 1


def test_episodes_draw_from_the_scenarios_chips(tiny_lm):
    env = tiny_env(tiny_lm, scenario="many-chips")
    variants = {play(env, seed, 0)[3]["figures"]["variant"] for seed in range(12)}
    assert len(env.control.emulators) > 3
    assert len(variants) > 3


def test_rewards_and_costs_of_ones_own(tiny_lm):
    own, usual = tiny_env(tiny_lm, reward=EnergyOnly(), cost=late_only), tiny_env(tiny_lm)
    _, rewards, costs, info = play(own, 2)
    _, _, usual_costs, usual_info = play(usual, 2)
    assert rewards.sum() == pytest.approx(usual_info["figures"]["reward_energy"])
    assert info["reward_terms"]["energy"] == pytest.approx(rewards.sum())
    assert costs.tolist() == usual_costs[:, :1].tolist()
    assert usual_costs.shape[1] == 3
    assert make(reward=f"{__name__}:EnergyOnly").unwrapped._reward.terms == ("energy",)


def test_side_by_side_row_i_is_the_environment_with_seed_plus_i():
    envs = gym.make_vec(LIVE_ID, num_envs=2, prompts=PROMPTS, max_new_tokens=3)
    singles = [make(max_new_tokens=3) for _ in range(2)]
    seen, _ = envs.reset(seed=6)
    assert seen.tobytes() == np.array([env.reset(seed=6 + i)[0] for i, env in enumerate(singles)]).tobytes()
    for step in range(12):  # prompt, and into the second token
        seen, reward, *_ = envs.step(np.array([3, step % 8]))
        own = [env.step(action) for env, action in zip(singles, (3, step % 8), strict=True)]
        assert seen.tobytes() == np.array([each[0] for each in own]).tobytes()
        assert reward.tolist() == [each[1] for each in own]


def test_masks_allow_an_exit_where_one_is_taken(tiny_lm):
    env = tiny_env(tiny_lm)
    env.reset(seed=0)
    for step in range(12):
        taken = env.action_masks()
        assert taken[:-1].all()
        assert taken[-1] == env.request.may_exit == (step in (5, 6, 7, 9, 10, 11))
        before = len(env.source.tokens)
        env.step(8 if step == 7 else 3)
        assert (len(env.source.tokens) > before) == (step in (3, 7, 11))


def test_pictures_show_the_request_in_flight():
    env = make(render_mode="ansi", scenario="hot")
    env.reset(seed=0)
    for _ in range(13):
        env.step(3)
    lines = env.render().splitlines()
    assert lines[0].startswith("asic28-sram | hot | 0.72 V 260 MHz")
    assert lines[1].startswith("token 1/6 layer 3/10")
    assert lines[3] == "depth |█|"
    env = make(render_mode="rgb_array")
    env.reset(seed=0)
    before = env.render()
    assert before.shape == (360, 640, 3)
    for _ in range(10):
        env.step(3)
    assert (env.render() != before).any()
    frames = make(render_mode="rgb_array_list")
    frames.reset(seed=0)
    frames.step(3)
    assert len(frames.render()) == 2


def test_files_of_prompts_are_read(tmp_path):
    plain = tmp_path / "plain.txt"
    plain.write_text("One two\nThree four five\n", encoding="utf-8")
    assert len(make(prompts=str(plain)).unwrapped.source) == 2
    lines = tmp_path / "lines.jsonl"
    rows = [{"prompt": "a"}, {"prompt": "b c d e", "split": "test"}, {"prompt": "x y", "split": "train", "answer": " z"}]
    lines.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    for split, count in {"train": 2, "test": 2, "validation": 1}.items():
        source = make(prompts=str(lines), split=split).unwrapped.source
        assert len(source) == count
        assert all(len(d.ids) == d.prompt_tokens for d in source.documents)  # answers are not given away
    lines.write_text(json.dumps(rows[1]), encoding="utf-8")
    with pytest.raises(BadValueError, match="has no train prompts"):
        make(prompts=str(lines))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model": "defualt"}, UnknownNameError, "did you mean 'default'"),
        ({"precision": "int9"}, BadValueError, "is stored in int4"),
        ({"prompts": []}, BadValueError, "a list of texts"),
        ({"prompts": [3]}, BadValueError, "a list of texts"),
        ({"prompts": 3}, BadValueError, "a list of texts"),
        ({"prompts": [" "]}, BadValueError, "the prompt is empty"),
        ({"prompts": ["7" * 400]}, BadValueError, "401 tokens"),
        ({"prompts": "nowhere.jsonl"}, BadFileError, "no such prompt file"),
        ({"split": "tests"}, UnknownNameError, "did you mean 'test'"),
        ({"max_new_tokens": 0}, BadValueError, "max_new_tokens is 0"),
        ({"temperature": -1.0}, BadValueError, "temperature is -1.0"),
        ({"top_k": -2}, BadValueError, "top_k is -2"),
        ({"scenario": "cold"}, UnknownNameError, "scenario"),
        ({"swithcing": "pmic"}, UnknownNameError, "did you mean 'switching'"),
        ({"render_mode": "text"}, BadValueError, "render_mode"),
        ({"reward": "nowhere:Reward"}, BadValueError, "No module"),
    ],
    ids=lambda value: str(value)[:24] if isinstance(value, dict) else "",
)
def test_bad_arguments_are_named(changes, error, message):
    with warnings.catch_warnings(), pytest.raises(error, match=message):
        warnings.simplefilter("ignore")  # gymnasium's, of a render mode
        make(**changes)


def test_bad_use_is_named(tiny_lm):
    env = tiny_env(tiny_lm)
    with pytest.raises(BadValueError, match="call reset"):
        env.step(0)
    for document in (-1, 3, 1.0, True, "1", [0]):
        with pytest.raises(BadValueError, match="0 to 2"):
            env.reset(options={"document": document})
    with pytest.raises(BadValueError, match="no option 'prompt'"):
        env.reset(options={"prompt": "The king"})
    env.reset(seed=0)
    for action in (-1, 9, 1.5, None, "3", True, [1, 2]):
        with pytest.raises(BadValueError, match="action"):
            env.step(action)
    play(env, 0)
    for _ in range(2):
        with pytest.raises(BadValueError, match="call reset"):
            env.step(0)
    env.close()
    env.close()
    play(env, 0)


def test_a_refused_reset_leaves_the_request_as_it_was(tiny_lm):
    env, other = tiny_env(tiny_lm), tiny_env(tiny_lm)
    for each in (env, other):
        each.reset(seed=3)
        each.step(2)
    with pytest.raises(BadValueError):
        env.reset(seed=9, options={"document": 77})
    assert env.step(4)[0].tobytes() == other.step(4)[0].tobytes()
    assert env.reset()[0].tobytes() == other.reset()[0].tobytes()


@pytest.mark.parametrize("missing", ["torch", "transformers"])
def test_without_the_models_packages_the_missing_extra_is_named(missing):
    code = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "import gymnasium as gym, clone_rl\n"
        "from clone_rl.errors import MissingExtraError\n"
        "try:\n"
        "    gym.make('clone_rl/LiveLayerControl-v0')\n"
        "except MissingExtraError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert missing in done.stdout
    assert "pip install 'clone-rl[llm]'" in done.stdout


def test_the_module_imports_no_torch():
    code = "import sys, clone_rl.llm.env; print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


COPIES = {
    "pickle": lambda env: pickle.loads(pickle.dumps(env)),
    "deepcopy": copy.deepcopy,
    "cloudpickle": lambda env: cloudpickle.loads(cloudpickle.dumps(env)),
}


def go_on(env, choose):
    """What is seen up to the end of the request."""
    rng, done, seen = np.random.default_rng(choose), False, []
    while not done:
        observation, reward, done, _, info = env.step(int(rng.integers(env.action_space.n)))
        seen.append((observation.tolist(), reward, info["cost"].tolist()))
    return repr((seen, info["figures"], env.unwrapped.source.tokens, env.reset()[0].tolist()))


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("steps", [None, 0, 17], ids=["fresh", "reset", "under way"])
@pytest.mark.parametrize("model", ["by name", "in memory"])
def test_a_copy_goes_on_as_the_original_does(tiny_lm, model, steps, how):
    """One that was loaded is loaded again where the copy is made; another is copied with its weights."""
    env = make(temperature=1.0) if model == "by name" else tiny_env(tiny_lm)
    if steps is not None:
        env.reset(seed=4, options={"document": 1})
        for _ in range(steps):
            env.step(env.unwrapped.control.points - 1 if len(env.unwrapped.source.tokens) < 1 else 8)
    twin = COPIES[how](env)
    assert (twin.unwrapped.source.lm is env.unwrapped.source.lm) == (model == "by name" or how == "deepcopy")
    if steps is None:
        env.reset(seed=4)
        twin.reset(seed=4)
    assert go_on(env, 1) == go_on(twin, 1)


def test_a_copy_is_small_and_of_the_model_that_it_was_made_with(monkeypatch):
    """No weights travel, so those that are found must be the same."""
    data = pickle.dumps(make())
    assert len(data) < 200_000
    (key, (stamp, lm)) = next((key, found) for key, found in model_module._loaded.items() if key[0] == "default")
    monkeypatch.setitem(model_module._loaded, key, (stamp, replace(lm, sha256="another")))
    with pytest.raises(BadFileError, match="another model"):
        pickle.loads(data)


@pytest.mark.parametrize("value", ["x", None, [], {}, b"x", object()], ids=lambda v: type(v).__name__)
@pytest.mark.parametrize("name", ["max_new_tokens", "temperature", "precision"])
def test_a_value_of_another_type_is_refused(name, value):
    with pytest.raises(CloneRLError, match=name):
        make(**{name: value})
