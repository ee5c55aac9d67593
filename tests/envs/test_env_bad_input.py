"""What environments are given that they must not take: a named error each time, nothing changed, nothing clipped."""

import json
import shutil

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from clone_rl.envs import ENV_IDS, LIVE_ID
from clone_rl.envs.control import load_control
from clone_rl.envs.scenario import Interference, Limits, Scenario, ServiceLevel, Weights
from clone_rl.envs.single import LayerControlEnv, TokenControlEnv
from clone_rl.envs.vector import LayerControlVectorEnv, TokenControlVectorEnv
from clone_rl.errors import BadFileError, BadValueError, CloneRLError, UnknownNameError

KINDS = ("layer", "token")
SINGLE = {"layer": LayerControlEnv, "token": TokenControlEnv}
VECTOR = {"layer": LayerControlVectorEnv, "token": TokenControlVectorEnv}
GROUPS = 5
HEADS = {"layer": (9,), "token": (*[8] * GROUPS, GROUPS)}
NAN, INF = float("nan"), float("inf")

# One row, three, and as many as token control has components: a flat array of one number for each must not pass for rows.
ROWS = (1, 3, GROUPS + 1)


def make(kind, rows, traces):
    """The single environment for one row, otherwise the vector one."""
    arguments = {"traces": traces, "groups": GROUPS}
    return SINGLE[kind](**arguments) if rows == 1 else VECTOR[kind](rows, **arguments)


def well_formed(kind, rows):
    """Actions in the space: every row's point 3, at full depth in token control."""
    action = np.array([3] if kind == "layer" else [3] * GROUPS + [GROUPS - 1])
    action = action if rows == 1 else np.tile(action, (rows, 1))
    return action.squeeze() if kind == "layer" else action


def at(actions, value):
    """The same actions with another value in the last place."""
    changed = np.atleast_1d(actions).astype(object)
    changed[(-1,) * changed.ndim] = value
    return changed.tolist() if actions.ndim else value


def wrong(kind, rows):
    """Name and value of actions that are not of the space."""
    good = well_formed(kind, rows)
    yield from {
        "None": None, "text": "3", "bytes": b"3", "nothing": [], "a table": {}, "a set": {3}, "an object": object(),
        "a function": abs, "the space": int, "ragged": [[0, 0], [0]],
    }.items()  # fmt: skip
    for dtype in ("f4", "f8", "c16", "?", "U1", "S1", "O", "m8[s]", "M8[s]"):
        yield f"of type {dtype}", good.astype(dtype)
    for value in (NAN, INF, -INF, 3.0, 2.5, "3", None, 3j):
        yield f"with {value!r}", at(good, value)
    most = HEADS[kind][-1]
    for value in (-1, most, most + 1, 255, 2**31, 2**32, 2**63 - 1, -(2**63), 2**63, 2**64 - 1, 2**64, -(2**64), 10**30):
        yield f"with {value}", at(good, value)
    yield "wrapping around", np.full_like(good, 2**64 - 1, dtype=np.uint64)
    width = len(HEADS[kind])
    shapes = {(), (0,), (rows,), (rows + 1,), (width,), (rows * width,), (rows, 0), (rows, width, 2), (2, rows, width)}
    shapes |= {(rows, width + 1), (rows, width - 1), (rows + 1, width), (rows - 1, width)}
    # Axes of length 1 may be there or not.
    fitting = [n for n in (rows, width) if n > 1]
    for shape in sorted(shapes):
        if [n for n in shape if n != 1] != fitting:
            yield f"of shape {shape}", np.zeros(shape, np.int64)


def cases():
    for kind in KINDS:
        for rows in ROWS:
            for name, value in wrong(kind, rows):
                yield pytest.param(kind, rows, value, id=f"{kind}-{rows}-{name}")


@pytest.fixture(scope="module")
def envs(trace_folder):
    """An environment to be abused and a twin that is not, for each kind and number of rows."""
    return {(kind, rows): [make(kind, rows, trace_folder) for _ in range(2)] for kind in KINDS for rows in ROWS}


def state(env):
    """Every byte that decides what comes next."""
    rows = env._rows
    return rows.state.tobytes(), rows.missing.tobytes(), np.asarray(env.action_masks()).tobytes()


def bytes_of(outcome):
    return [np.asarray(part).tobytes() for part in outcome[:4]]


@pytest.mark.parametrize(("kind", "rows", "action"), list(cases()))
def test_an_action_outside_the_space_is_refused_and_changes_nothing(envs, kind, rows, action):
    env, twin = envs[kind, rows]
    good = well_formed(kind, rows)
    for each in (env, twin):
        each.reset(seed=7)
        each.step(good)
    before = state(env)
    with pytest.raises(BadValueError) as caught:
        env.step(action)
    assert caught.value.message
    assert caught.value.hint
    assert state(env) == before
    assert bytes_of(env.step(good)) == bytes_of(twin.step(good))


def in_the_space(kind, rows, action):
    """Whether these are whole numbers, one for each component of each row, and each one of its choices."""
    if isinstance(action, np.ndarray) and action.dtype.kind not in "iu":
        return False
    try:
        listed = np.asarray(action, object) if not isinstance(action, np.ndarray) else action
    except ValueError:
        return False
    if [n for n in listed.shape if n != 1] != [n for n in (rows, len(HEADS[kind])) if n > 1]:
        return False
    values = [listed.item()] if listed.ndim == 0 else listed.reshape(-1).tolist()
    if any(not isinstance(value, int) or isinstance(value, bool) for value in values):
        return False
    return all(0 <= value < most for value, most in zip(values, HEADS[kind] * rows, strict=True))


def one_for_each_row(kind, rows, action):
    """A flat list of one number for each row, where a row has several."""
    flat = isinstance(action, np.ndarray) and action.ndim == 1
    flat |= isinstance(action, list) and not any(isinstance(value, list) for value in action)
    return kind == "token" and flat and len(action) == rows


NUMBERS = st.one_of(st.integers(-2, 10), st.integers(), st.floats(), st.sampled_from([NAN, None, "3", 2**63, 2**64]))
SHAPES = st.lists(st.sampled_from([0, 1, 2, 3, 5, 6]), max_size=3).map(tuple)
ACTIONS = st.one_of(
    NUMBERS,
    st.text(max_size=3),
    st.lists(NUMBERS, max_size=7),
    st.lists(st.lists(st.one_of(st.integers(-1, 9), NUMBERS), max_size=7), max_size=7),
    hnp.arrays(st.sampled_from(["i1", "u1", "i4", "i8", "u8", "f4", "f8", "?"]), SHAPES),
    hnp.arrays("i8", SHAPES, elements=st.integers(-1, 9)),
)


@given(st.sampled_from(KINDS), st.sampled_from(ROWS), ACTIONS)
def test_whatever_is_no_action_is_refused_and_whatever_is_one_is_taken(envs, kind, rows, action):
    env = envs[kind, rows][0]
    env.reset(seed=1)
    before = state(env)
    if in_the_space(kind, rows, action):
        env.step(action)
        assert state(env) != before
        return
    with pytest.raises(BadValueError):
        env.step(action)
    assert state(env) == before


@given(st.data(), st.sampled_from(KINDS), st.sampled_from(ROWS), st.sampled_from(["i1", "u1", "i2", "i4", "i8", "u8"]))
def test_every_action_of_the_space_is_taken(envs, data, kind, rows, dtype):
    env = envs[kind, rows][0]
    env.reset(seed=2)
    action = np.array([[data.draw(st.integers(0, most - 1)) for most in HEADS[kind]] for _ in range(rows)], dtype)
    shaped = action.reshape(well_formed(kind, rows).shape)
    assert env.action_space.contains(shaped.astype(np.int64))
    before = state(env)
    first = bytes_of(env.step(shaped))
    assert state(env) != before
    env.reset(seed=2)
    assert bytes_of(env.step(shaped.tolist())) == first


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", ROWS)
def test_there_is_no_step_before_the_first_reset(trace_folder, kind, rows):
    env = make(kind, rows, trace_folder)
    with pytest.raises(BadValueError, match="call reset"):
        env.step(well_formed(kind, rows))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "rows",
    [0, -1, 2.5, 2.0, NAN, "3", None, True, [2]],
    ids=repr,
)
def test_a_number_of_rows_that_is_none_is_refused(trace_folder, kind, rows):
    with pytest.raises(BadValueError, match="num_envs"):
        VECTOR[kind](num_envs=rows, traces=trace_folder)


@pytest.mark.parametrize("limit", [0, -1, 2.5, NAN, INF, "3", True], ids=repr)
def test_a_time_limit_that_is_none_is_refused(trace_folder, limit):
    with pytest.raises(BadValueError, match="max_episode_steps"):
        LayerControlVectorEnv(2, max_episode_steps=limit, traces=trace_folder)


@pytest.mark.parametrize(
    "seeds",
    [
        [], [1], [1, 2, 3],
        [1.5, 2], [-1, 2], [2**63, 1], ["a", "b"], [NAN, 1],
    ],
    ids=repr,
)  # fmt: skip
def test_seeds_that_are_none_of_a_row_are_refused(trace_folder, seeds):
    with pytest.raises(BadValueError, match="seed"):
        LayerControlVectorEnv(2, traces=trace_folder).reset(seed=seeds)


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("seed", [-1, 1.5, "3", NAN, 2**63, 2**64], ids=repr)
def test_a_seed_that_is_none_is_refused(trace_folder, rows, seed):
    env = make("layer", rows, trace_folder)
    with pytest.raises(BadValueError, match="seed"):
        env.reset(seed=seed)
    env.reset()


def test_the_last_row_has_a_seed_too(trace_folder):
    make("layer", 1, trace_folder).reset(seed=2**63 - 1)
    make("layer", 2, trace_folder).reset(seed=2**63 - 2)
    with pytest.raises(BadValueError, match="seed"):
        make("layer", 2, trace_folder).reset(seed=2**63 - 1)


TOML = """
name = "mine"
chip = "asic28-sram"
traces = "{traces}"
{top}
[[slo]]
name = "a"
ttft_s = {ttft_s}
tpot_s = {tpot_s}
{slo}
{tables}
"""


@pytest.fixture
def from_file(tmp_path, trace_folder):
    """An environment of a scenario file with some of it changed."""

    def write(top="", ttft_s="0.02", tpot_s="5e-4", slo="", tables=""):
        text = TOML.format(traces=trace_folder, top=top, ttft_s=ttft_s, tpot_s=tpot_s, slo=slo, tables=tables)
        (tmp_path / "mine.toml").write_text(text)
        return gym.make(next(iter(ENV_IDS)), scenario=str(tmp_path / "mine.toml"))

    return write


def test_the_file_that_the_tests_below_spoil_is_sound(from_file):
    assert from_file().reset(seed=0)[0].shape == (16,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"top": "chips = 'asic28-sram'"}, "unknown key 'chips'.*did you mean 'chip'"),
        ({"top": "[limit]"}, "unknown key 'limit'.*did you mean 'limits'"),
        ({"slo": "tpots = 1"}, r"slo\[0\]: unknown key 'tpots'"),
        ({"slo": "ttft = 1"}, "unknown key 'ttft'.*did you mean 'ttft_s'"),
        ({"tables": "[interference]\nslowdwn = 2.0"}, "interference.*unknown key 'slowdwn'.*did you mean 'slowdown'"),
        ({"tables": "[weights]\nlates = 2.0"}, "weights.*unknown key 'lates'.*did you mean 'late'"),
        ({"tables": "[limits]\nmis = 0.1"}, "limits.*unknown key 'mis'.*did you mean 'miss'"),
        ({"tables": "[randomise]\nseeds = 1"}, "randomise.*unknown key 'seeds'.*did you mean 'seed'"),
    ],
    ids=lambda value: "-".join(value.values()) if isinstance(value, dict) else "",
)
def test_an_unknown_key_of_a_scenario_file_is_named(from_file, changes, message):
    with pytest.raises(BadFileError, match=message):
        from_file(**changes)


@pytest.mark.parametrize("target", ["ttft_s", "tpot_s"])
@pytest.mark.parametrize("value", ["0", "-0.0", "-1e-3", "inf", "-inf", "nan", "true", "'1 ms'", "[1.0]", "1" + "0" * 400])
def test_a_deadline_that_is_none_is_refused_in_a_file(from_file, target, value):
    with pytest.raises(BadFileError, match=rf"slo\[0\].*{target}"):
        from_file(**{target: value})


@pytest.mark.parametrize("target", ["ttft_s", "tpot_s"])
@pytest.mark.parametrize("value", [0, -1e-3, INF, -INF, NAN, True, "1 ms", None, [1.0], 10**400], ids=lambda v: repr(v)[:9])
def test_a_deadline_that_is_none_is_refused_as_a_keyword(trace_folder, target, value):
    level = {"name": "a", "ttft_s": 0.02, "tpot_s": 5e-4, target: value}
    with pytest.raises(BadFileError, match=rf"slo\[0\].*{target}"):
        gym.make(next(iter(ENV_IDS)), traces=trace_folder, slo=[level])
    with pytest.raises(BadValueError, match=target):
        ServiceLevel(**level)


@pytest.mark.parametrize(
    "change",
    [
        {"slack_low": 0.0}, {"slack_low": NAN}, {"slack_high": INF}, {"slack_low": 2.0, "slack_high": 1.0},
        {"interference": {"slowdown": 0.99}}, {"interference": {"slowdown": INF}}, {"interference": {"slot_s": 0.0}},
        {"interference": {"mean_busy_s": NAN}}, {"weights": {"late": NAN}}, {"weights": {"kl": -1.0}},
        {"limits": {"miss": -0.1}}, {"limits": {"dnll": NAN}}, {"limits": {"disagree": "2 %"}}, {"limits": 0.02},
        {"decision_delay": True}, {"policy_macs": 0.5}, {"probe": 1}, {"ambient_c": NAN}, {"ambient_c": INF}, {"slo": []},
        {"slo": [3]}, {"slo": "chatbot"}, {"signals": "margin"}, {"name": 3},
    ],
    ids=repr,
)  # fmt: skip
def test_a_scenario_that_makes_no_sense_makes_no_environment(trace_folder, change):
    for env_id in ENV_IDS:
        with pytest.raises(CloneRLError) as caught:
            gym.make(env_id, traces=trace_folder, **change)
        assert caught.value.hint


@pytest.mark.parametrize("cls", [Limits, Weights])
@pytest.mark.parametrize("value", [-1e-9, NAN, -INF, "0.1", None, True], ids=repr)
def test_weights_and_limits_are_numbers_and_not_negative(cls, value):
    with pytest.raises(BadValueError, match="disagree"):
        cls(disagree=value)


@pytest.mark.parametrize("name", ["slowdown", "slot_s", "mean_idle_s", "mean_busy_s"])
@pytest.mark.parametrize("value", [0, -1, NAN, INF, "1", None, True], ids=repr)
def test_interference_is_of_finite_times(name, value):
    with pytest.raises(BadValueError, match=name):
        Interference(**{name: value})


@pytest.fixture
def folder(trace_folder, tmp_path):
    return shutil.copytree(trace_folder, tmp_path / "copy")


def put(folder, name, place, value):
    column = np.load(folder / f"{name}.npy")
    column[place] = value
    np.save(folder / f"{name}.npy", column)


@pytest.mark.parametrize(
    ("name", "place", "value", "message"),
    [
        ("prompt_tokens", 3, 0, "a prompt has no tokens"),
        ("prompt_tokens", 3, -5, "a prompt has no tokens"),
        ("offset", 4, 0, "at least one token"),
        ("offset", 0, 1, "ascend from 0"),
        ("offset", -1, 10**6, "ascend from 0"),
        ("split", 3, 3, "'split' names something that does not exist"),
        ("kind", 3, -1, "'kind' names something that does not exist"),
        ("signal", (5, 5, 0), NAN, "'signal' is not finite"),
        ("agree", (5, 5), NAN, "'agree' is not finite"),
        ("kl", (5, 5), INF, "'kl' is not finite"),
        ("dnll", (5, 5), -INF, "'dnll' is not finite"),
    ],
    ids=lambda value: str(value)[:16],
)
def test_traces_that_could_not_have_been_recorded_make_no_environment(folder, name, place, value, message):
    put(folder, name, place, value)
    for env_id in ENV_IDS:
        with pytest.raises(BadFileError, match=message):
            gym.make(env_id, traces=str(folder))


def test_a_response_of_no_tokens_is_refused_wherever_it_is(folder):
    offset = np.load(folder / "offset.npy")
    for request in (0, 7, 29):
        put(folder, "offset", request + 1, offset[request])
        with pytest.raises(BadFileError, match="at least one token"):
            load_control("layer", traces=str(folder))
        np.save(folder / "offset.npy", offset)


@pytest.mark.parametrize("name", ["hidden", "margin", "entropy"])
def test_what_a_signal_shows_is_finite(folder, name):
    put(folder, name, (5, 5), NAN)
    signal = {"hidden": "cosine"}.get(name, name)
    with pytest.raises(BadFileError, match=f"'{name}' is not finite"):
        gym.make(next(iter(ENV_IDS)), traces=str(folder), signals=[signal])


CONFIG = {
    "model_type": "llama", "num_hidden_layers": 10, "hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 768, "vocab_size": 2048, "head_dim": 64, "max_position_embeddings": 256,
}  # fmt: skip


@pytest.fixture
def config(tmp_path, traces):
    def write(**changes):
        path = tmp_path / "config.json"
        path.write_text(json.dumps({**CONFIG, "vocab_size": traces.card["shape"]["vocab_size"], **changes}))
        return str(path)

    return write


def test_the_model_of_the_traces_may_be_named(trace_folder, config):
    control = load_control("layer", traces=trace_folder, model=config())
    assert control.emulator.workload.layers == control.traces.layers == 10


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 12}, "have 10 layers and model .* has 12"),
        ({"num_hidden_layers": 8}, "have 10 layers and model .* has 8"),
        ({"hidden_size": 512}, "hidden_size is 256, not 512"),
        ({"num_attention_heads": 2}, "heads is 4, not 2"),
        ({"num_key_value_heads": 4}, "kv_heads is 2, not 4"),
        ({"intermediate_size": 1024}, "ff_size is 768, not 1024"),
        ({"vocab_size": 1000}, "vocab_size is 2048, not 1000"),
        ({"head_dim": 32}, "head_dim is 64, not 32"),
    ],
    ids=str,
)
def test_traces_of_another_model_are_refused(trace_folder, config, kind, changes, message):
    with pytest.raises(BadValueError, match=message) as caught:
        load_control(kind, traces=trace_folder, model=config(**changes))
    assert "clone-rl record" in caught.value.hint


def test_a_published_model_is_not_the_one_of_the_traces(trace_folder):
    for env_id in ENV_IDS:
        with pytest.raises(BadValueError, match=r"10 layers and model 'llama-3.2-1b' has 16"):
            gym.make(env_id, traces=trace_folder, model="llama-3.2-1b")


@pytest.mark.parametrize("content", [None, "{", "[]", "{}"], ids=["missing", "cut", "list", "empty"])
def test_a_model_that_is_none_is_refused(trace_folder, tmp_path, content):
    path = tmp_path / "config.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(CloneRLError):
        load_control("layer", traces=trace_folder, model=str(path))


@pytest.mark.parametrize("layers", [3, 9, 12])
def test_traces_of_fewer_or_more_layers_than_the_model_are_refused(folder, layers):
    """The columns have ten, whatever the card makes of the model."""
    card = json.loads((folder / "card.json").read_text())
    card["shape"]["layers"] = layers
    (folder / "card.json").write_text(json.dumps(card))
    for kind in KINDS:
        with pytest.raises(BadValueError, match=f"10 layers and the model {layers}"):
            load_control(kind, traces=str(folder))
    card["layers"] = layers
    (folder / "card.json").write_text(json.dumps(card))
    with pytest.raises(BadFileError, match="has shape"):
        load_control("layer", traces=str(folder))


@pytest.mark.parametrize("kind", KINDS)
def test_a_split_without_documents_is_refused(folder, kind):
    put(folder, "split", slice(None), 0)
    with pytest.raises(BadValueError, match="no test documents"):
        SINGLE[kind](traces=str(folder), split="test")
    with pytest.raises(UnknownNameError, match="did you mean 'test'"):
        VECTOR[kind](2, traces=str(folder), split="tests")


def test_a_scenario_is_checked_again_when_it_is_changed():
    with pytest.raises(UnknownNameError, match="did you mean 'slack_low'"):
        Scenario.load("default", slack_lo=2.0)
    with pytest.raises(BadFileError, match="unknown key 'ttft'"):
        Scenario.load({"name": "mine", "chip": "asic28-sram", "traces": "default", "slo": [{"name": "a", "ttft": 1}]})


@pytest.mark.parametrize(
    ("keywords", "meant"),
    [
        ({"senario": "hot"}, "did you mean 'scenario'"),
        ({"splitt": "test"}, "did you mean 'split'"),
        ({"rewards": None}, "did you mean 'reward'"),
        ({"render": "ansi"}, "did you mean 'render_mode'"),
        ({"max_episode_step": 3}, "did you mean 'max_episode_steps'"),
        ({"switchin": "pmic"}, "did you mean 'switching'"),
        ({"zzz": 1}, "known: .*render_mode.*scenario.*split.*switching"),
    ],
    ids=str,
)
@pytest.mark.parametrize("env_id", [*ENV_IDS, LIVE_ID])
def test_a_keyword_that_nobody_takes_is_named_with_those_that_there_are(env_id, keywords, meant):
    with pytest.raises(UnknownNameError, match=f"unknown keyword {next(iter(keywords))!r} .*{meant}"):
        gym.make(env_id, **keywords)
    if env_id != LIVE_ID:
        with pytest.raises(UnknownNameError, match=f"unknown keyword {next(iter(keywords))!r} .*{meant}"):
            gym.make_vec(env_id, 2, **keywords)


def test_keywords_of_one_kind_of_environment_are_known_there():
    for keywords, meant in (({"num_env": 2}, "num_envs"), ({"autoreset": True}, "autoreset_mode")):
        with pytest.raises(UnknownNameError, match=f"did you mean {meant!r}"):
            gym.make_vec(next(iter(ENV_IDS)), 2, **keywords)
    for keywords, meant in (({"promts": []}, "prompts"), ({"temprature": 1.0}, "temperature"), ({"topk": 1}, "top_k")):
        with pytest.raises(UnknownNameError, match=f"did you mean {meant!r}"):
            gym.make(LIVE_ID, **keywords)


@pytest.mark.parametrize("mode", ["NextStep", gym.vector.AutoresetMode.NEXT_STEP])
def test_a_mode_of_autoreset_that_is_not_there_is_no_slip_of_the_pen(mode):
    with pytest.raises(UnknownNameError) as caught:
        gym.make_vec(next(iter(ENV_IDS)), 2, autoreset_mode=mode)
    assert "did you mean" not in caught.value.hint
    assert "'SameStep'" in caught.value.hint
    assert "'Disabled'" in caught.value.hint
    with pytest.raises(UnknownNameError, match="did you mean 'Disabled'"):
        gym.make_vec(next(iter(ENV_IDS)), 2, autoreset_mode="disabled")


@pytest.mark.parametrize("value", [3, None, 1.5, [], b"x", object()], ids=lambda v: type(v).__name__)
@pytest.mark.parametrize("name", ["scenario", "split", "autoreset_mode"])
def test_a_value_of_another_type_is_refused(name, value):
    with pytest.raises(CloneRLError, match=name.replace("_", " ")):
        gym.make_vec(next(iter(ENV_IDS)), 2, **{name: value})
