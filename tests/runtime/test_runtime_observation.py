"""One request at one service level looks the same to a policy in every loop that runs it, whatever else a scenario offers."""

import asyncio
from dataclasses import replace
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recorded import Recorded

from clone_rl.agents.controller import RuleController
from clone_rl.agents.heuristics import find_baseline
from clone_rl.agents.heuristics.hold import HoldBaseline
from clone_rl.agents.policy import Policy
from clone_rl.agents.rollout import charged_for, charged_scenario, run_requests
from clone_rl.agents.rule import decide, rule
from clone_rl.envs.control import load_control
from clone_rl.envs.live import LiveControl, LiveLayerControlEnv, LiveRequest
from clone_rl.envs.observation import OBSERVATION
from clone_rl.envs.randomness import REQUEST, uniform
from clone_rl.envs.scenario import Scenario, ServiceLevel, TargetScale
from clone_rl.envs.trace import load_traces
from clone_rl.evaluation.live import LiveRunner
from clone_rl.evaluation.unseen import unseen_conditions
from clone_rl.llm.live import LiveSession, drive
from clone_rl.llm.sampling import Sampling
from clone_rl.runtime import ControlledDecoding, RuntimeController
from clone_rl.runtime.export.observations import collect
from clone_rl.runtime.server.job import Answer
from clone_rl.runtime.server.service import Service
from clone_rl.runtime.server.settings import Settings

pytest_plugins = ["llm_models"]

POLICY = Policy.load("default")
TTFT, TPOT = OBSERVATION.index("ttft"), OBSERVATION.index("tpot")


class Logged(NamedTuple):
    """A rule, and what it saw."""

    inner: Any
    log: Any
    count: Any


@rule(Logged)
def _logged(self, observation, memory, action):
    for i in range(len(observation)):
        self.log[self.count[0] % len(self.log), i] = observation[i]
    self.count[0] += 1
    decide(self.inner, observation, memory, action)


class Logging(RuleController):
    """A policy that keeps what it sees, in whatever loop."""

    kind = "layer"

    def __init__(self, policy, rows=4000):
        self.policy, self.log, self.count = policy, np.zeros((rows, len(OBSERVATION)), np.float32), np.zeros(1, np.int64)
        self.name, self.macs, self.probes, self.heads = policy.name, policy.macs, policy.probes, policy.heads
        self.signals, self.scale, self.card = policy.signals, policy.scale, policy.card

    @property
    def rule(self):
        return Logged(self.policy.rule, self.log, self.count)

    def memory(self, rows):
        return self.policy.memory(rows)

    def describe(self):
        return self.policy.describe()

    @property
    def seen(self):
        return self.log[: int(self.count[0])].copy()


class Asked:
    """The same without its rule: it is called, once for each step."""

    def __init__(self, inner):
        self.inner, self.kind, self.macs, self.probes = inner, "layer", inner.macs, inner.probes
        self.name, self.signals, self.scale = inner.name, inner.signals, inner.scale

    def act(self, observations):
        return self.inner.act(observations)

    def describe(self):
        return {}


def only(level: ServiceLevel, which: str, traces: str) -> Scenario:
    """A scenario in which every request is of one level, come by in several ways."""
    exact = {"slack_low": 1.0, "slack_high": 1.0, "traces": traces}
    if which == "replaced":
        return replace(Scenario.load("default"), slo=(level,), **exact)
    if which == "by keyword":
        return Scenario.load("default", slo=[{"name": level.name, "ttft_s": level.ttft_s, "tpot_s": level.tpot_s}], **exact)
    base = Scenario.load("default").as_dict()
    return Scenario.parse({**base, **exact, "name": "own", "slo": [vars(level)]}, "a file of one's own")


def through_gym(scenario, document, seed):
    own = charged_scenario(scenario, POLICY)
    env = gym.make("clone_rl/LayerControl-v0", scenario=own, split="test", disable_env_checker=True)
    observation, _ = env.reset(seed=seed, options={"document": document})
    seen = []
    while True:
        seen.append(observation)
        observation, _, done, _, _ = env.step(int(POLICY.act(observation[None])[0, 0]))
        if done:
            return np.array(seen)


def through_vector(scenario, document, seed):
    own = charged_scenario(scenario, POLICY)
    env = gym.make_vec("clone_rl/LayerControl-v0", num_envs=3, scenario=own, split="test")
    observation, _ = env.reset(seed=seed - 1)
    seen = []
    while True:
        seen.append(observation[1].copy())
        observation, _, done, _, _ = env.step(POLICY.act(observation)[:, 0])
        if done[1]:
            return np.array(seen)


def through_live_env(scenario, document, seed):
    own = charged_scenario(scenario, POLICY)
    control = charged_for(load_control("layer", scenario, "test"), POLICY, "test")
    env = LiveLayerControlEnv(Recorded(control.traces), control.emulator.workload, own)
    observation, _ = env.reset(seed=seed, options={"document": document})
    seen = []
    while True:
        seen.append(observation.copy())
        observation, _, done, _, _ = env.step(int(POLICY.act(observation[None])[0, 0]))
        if done:
            return np.array(seen)


def through_replay(scenario, document, seed, wrap=lambda logging: logging):
    logging = Logging(POLICY)
    run_requests(load_control("layer", scenario, "test"), wrap(logging), "test", np.array([document]), seed)
    return logging.seen


def through_batches(scenario, document, seed):
    return through_replay(scenario, document, seed, Asked)


def through_live_runner(scenario, document, seed):
    logging, control = Logging(POLICY), load_control("layer", scenario, "test")
    LiveRunner(Recorded(control.traces), {document: document})(control, logging, "test", np.array([document]), seed)
    return logging.seen


def through_runtime(scenario, document, seed):
    logging = Logging(POLICY)
    control = charged_for(load_control("layer", scenario, "test"), logging, "test")
    live = LiveControl(control.scenario, control.emulator)
    request = LiveRequest(live, Recorded(control.traces), document, seed)
    drive(request, RuntimeController(logging, control.points).begin("one"))
    return logging.seen


def through_a_named_level(scenario, document, seed):
    """Among the classes that the policy was trained with, as ``generate --slo``, ``serve`` and ``transformers`` do."""
    logging, whole = Logging(POLICY), Scenario.load("default", traces=scenario.traces)
    control = charged_for(load_control("layer", whole, "test"), logging, "test")
    live = LiveControl(control.scenario, control.emulator)
    request = LiveRequest(live, Recorded(control.traces), document, seed, slo=scenario.slo[0])
    drive(request, RuntimeController(logging, control.points).begin("one"))
    return logging.seen


LOOPS = [
    *(through_gym, through_vector, through_live_env, through_replay, through_batches),
    *(through_live_runner, through_runtime, through_a_named_level),
]
LEVELS = [*Scenario.load("default").slo, ServiceLevel("longer than any", 1.0, 0.1), ServiceLevel("odd", 7e-3, 3.1e-4)]


@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    level=st.sampled_from(LEVELS),
    which=st.sampled_from(["replaced", "by keyword", "own"]),
    seed=st.integers(1, 2**31 - 2),
)
def test_every_loop_shows_a_policy_the_same_bytes(trace_folder, level, which, seed):
    documents = load_traces(trace_folder).documents("test")
    document = int(documents[int(uniform(seed, 0, REQUEST, 0) * len(documents))])  # that which this seed draws
    scenario = only(level, which, trace_folder)
    reference = through_replay(scenario, document, seed)
    assert len(reference) > 10
    assert reference[0, TTFT] == np.float32(min(1.0, level.ttft_s / POLICY.scale.ttft_s))
    assert reference[0, TPOT] == np.float32(min(1.0, level.tpot_s / POLICY.scale.tpot_s))
    for loop in LOOPS:
        assert loop(scenario, document, seed).tobytes() == reference.tobytes(), loop.__name__


@pytest.mark.parametrize("which", ["replaced", "by keyword", "own"])
def test_what_an_export_is_fitted_to_is_of_the_policys_scale(trace_folder, which):
    scenario = only(LEVELS[4], which, trace_folder)
    seen = collect(load_control("layer", scenario, "train"), POLICY, "train", 300, seed=0)
    assert set(seen[:, TPOT].tolist()) == {float(np.float32(LEVELS[4].tpot_s / POLICY.scale.tpot_s))}


def test_an_unseen_condition_shows_targets_as_they_were_known():
    known = Scenario.load("default")
    for name, scenario in unseen_conditions(known).items():
        control = charged_for(load_control("layer", scenario, "test"), POLICY, "test")
        rules = control.world.rules[0]
        assert (rules["max_ttft_s"], rules["max_tpot_s"]) == (known.scale.ttft_s, known.scale.tpot_s), name


class Watched:
    """A runtime controller that keeps what it is shown."""

    def __init__(self, runtime):
        self.runtime, self.shown = runtime, []
        self.points, self.budget = runtime.points, runtime.budget
        self.controller = runtime.controller

    def begin(self, *request, **named):
        self.request = self.runtime.begin(*request, **named)
        return self

    def decide(self, observation, **named):
        self.shown.append(np.array(observation))
        return self.request.decide(observation, **named)

    def observe(self, cost):
        self.request.observe(cost)

    def report(self):
        return self.request.report()


@pytest.mark.parametrize("slo", ["smart-reply", "code"])
def test_generation_transformers_and_the_server_show_a_policy_the_same_bytes(lm, slo):
    level = next(one for one in LEVELS if one.name == slo)
    prompt, tokens, shown = lm.encode("Once upon a time there was a fox who"), 6, {}
    alone = only(level, "own", "default")  # as who serves one kind of request would write it
    for name, scenario in (("of its training", Scenario.load("default")), ("of one level", alone)):
        session = LiveSession(lm, charged_scenario(scenario, POLICY))
        watched = Watched(RuntimeController(POLICY, 8))
        session.generate(prompt, watched.begin(), tokens, Sampling(0.0), slo=level, reference=False)
        shown[f"generate, scenario {name}"] = watched.shown
        session.close()
        controlled = ControlledDecoding.load(POLICY, lm, scenario=scenario, strict=False, slo=level)
        controlled.runtime = watched = Watched(controlled.runtime)
        ids = torch.tensor([prompt])
        lm.model.generate(ids, custom_generate=controlled, max_new_tokens=tokens, do_sample=False)
        shown[f"transformers, scenario {name}"] = watched.shown
        session, watched = LiveSession(lm, charged_scenario(scenario, POLICY)), Watched(RuntimeController(POLICY, 8))
        shown[f"server, scenario {name}"] = served(session, watched, prompt, tokens, slo)
        session.close()
    assert len(shown) == 6
    (_, reference), *others = shown.items()
    assert len(reference) > 10
    for name, one in others:
        assert np.array(one).tobytes() == np.array(reference).tobytes(), name


def served(session, watched, prompt, tokens, slo):
    """What the server's worker shows its controller for one request."""
    service = Service(session, watched, "default", Settings())
    body = {"model": service.model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "seed": 0, "slo": slo}

    async def answer():
        job = await service.job(body, {}, "completions", "one")
        service.worker.submit(job)
        while not isinstance(event := await job.hear(), Answer):
            assert isinstance(event, str), event

    service.worker.start()
    try:
        asyncio.run(answer())
    finally:
        service.worker.stop()
    return watched.shown


def test_governors_that_read_targets_bring_the_scale_of_their_tables(control, trace_folder):
    other = load_control("layer", only(LEVELS[3], "own", trace_folder), "test")
    assert other.scenario.scale != control.scenario.scale
    limits = control.scenario.limits
    for spec in (find_baseline("ondemand"), HoldBaseline("token"), HoldBaseline("request")):
        made = spec.make(control, spec.fit(control, limits, 0, spec.start(control, limits, 0)))
        assert charged_scenario(other.scenario, made).scale == control.scenario.scale, spec.name


def test_a_card_without_a_scale_is_of_its_scenarios_and_one_of_neither_takes_what_it_meets():
    older = {key: value for key, value in POLICY.card.items() if key not in ("scale", "trained_in")}
    scenario = only(LEVELS[3], "own", "default")
    assert replace(POLICY, card=older).scale == POLICY.scale == TargetScale(0.048, 0.0016)
    assert charged_scenario(scenario, replace(POLICY, card={})).scale == scenario.scale
    assert charged_scenario(scenario, POLICY).scale == POLICY.scale
