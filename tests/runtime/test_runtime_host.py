"""Decisions on what a host knows: the request reckons the kernel's own observation."""

import threading
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hosts import measured, shown

from clone_rl.agents.controller import LayerCost
from clone_rl.agents.heuristics import Fixed, Pace
from clone_rl.agents.policy import Policy
from clone_rl.agents.rollout import charged_for, charged_scenario
from clone_rl.envs.control import Control, load_control
from clone_rl.envs.observation import OBSERVATION
from clone_rl.envs.rows import Rows
from clone_rl.envs.scenario import Scenario, ServiceLevel
from clone_rl.envs.signals import EXTRA_SIGNALS
from clone_rl.envs.trace import load_traces
from clone_rl.errors import BadValueError, UnknownNameError
from clone_rl.hw_emulator import Workload
from clone_rl.llm import live as live_loop
from clone_rl.llm.live import LiveRequest, LiveSession
from clone_rl.llm.probe_reader import ProbeReader
from clone_rl.runtime import (
    Decision,
    ErrorBudget,
    RuntimeController,
    budgeted,
    emulated_host,
    emulated_shield,
)
from clone_rl.runtime.decoding import ControlledDecoding

pytest_plugins = ["llm_models"]

COST = LayerCost(2e-5, 1e-6)
SMALL = Workload(layers=4, hidden_size=64, heads=4, kv_heads=2, ff_size=128, context=64)
PACE = Pace(8, 0.93, 0.2)
SIGNALS = ("margin", "depth", "norm", "entropy", "cosine", "change")


def policy_with(signals, seed=0):
    rng = np.random.default_rng(seed)
    sizes = len(OBSERVATION) + len(signals), 12, 9
    layers = tuple((rng.normal(0, 1, (b, a)).astype(np.float32), np.zeros(b, np.float32)) for a, b in pairwise(sizes))
    return Policy(layers, (9,), name="random", signals=signals)


class Random:
    """Any action at any boundary."""

    name, kind, macs = "random", "layer", 100

    def __init__(self, seed, probes=True, signals=()):
        self._rng, self.probes, self.signals = np.random.default_rng(seed), probes, signals

    def act(self, observations):
        assert observations.shape[1] == len(OBSERVATION) + len(self.signals)
        return np.array([[8 if self._rng.random() < 0.15 else self._rng.integers(0, 8)]])

    def describe(self):
        return {}


# Against a model that generates.


class Recorder:
    """A request in the loop of ``generate``, and what a host would have known at each of its boundaries."""

    def __init__(self, request):
        self.request, self.known, self.seen, self.decided, self.costs = request, [], [], [], []

    def decide(self, observation):
        live, reading = self.live[-1], self.readings[-1:]
        state, trace = live.rows.state[0], live._trace
        token, layer, left = int(state["token"]), int(state["layer"]), int(state["left"])
        known = {"busy": bool(state["busy"]), "die_c": float(state["die_c"])}
        if token and layer:
            if reading:
                known["probe"] = reading[0]
            known |= dict(zip(("norm", "change", "cosine"), trace.hidden[token, layer - 1].tolist(), strict=True))
        elif token:
            known |= {"margin": trace.margin[token - 1, left - 1], "entropy": trace.entropy[token - 1, left - 1]}
        self.known.append(known)
        self.seen.append(observation.copy())
        self.decided.append(self.request.decide(observation))
        return self.decided[-1]

    def observe(self, cost):
        self.costs.append(cost)
        self.request.observe(cost)


@pytest.fixture
def spied(monkeypatch):
    """What a recorder looks at: the live requests and the probe's readings."""
    Recorder.live, Recorder.readings = [], []
    read = ProbeReader.__call__

    def reading(self, hidden, exit_layer):
        Recorder.readings.append(read(self, hidden, exit_layer))
        return Recorder.readings[-1]

    def request(*args, **options):
        Recorder.live.append(LiveRequest(*args, **options))
        return Recorder.live[-1]

    monkeypatch.setattr(ProbeReader, "__call__", reading)
    monkeypatch.setattr(live_loop, "LiveRequest", request)


def replayed(request, record):
    """The loop of a host that knows nothing else; exits where there are none are the next layer, in ``generate`` too."""
    delays, none = bool(record.live[-1].control.scenario.decision_delay), 0
    for known, seen, decided, cost in zip(record.known, record.seen, record.decided, record.costs, strict=True):
        if decided.exit and "norm" not in known and not delays:
            decided, none = Decision(decided.operating_point), none + 1
        assert request.decide(**known) == decided
        assert request._seen.tobytes() == seen.tobytes()
        request.observe(cost)
    ours, theirs = request.report(), record.request.report()
    assert ours.pop("exits") == theirs.pop("exits") - none
    assert ours.pop("latency_s") == pytest.approx(theirs.pop("latency_s"))
    assert ours == theirs


CASES = {
    "chatbot": ("default", "default", {}, {}),
    "smart-reply": ("default", "default", {}, {"waited_s": 2.5e-3}),
    "code": ("default", "default", {"ambient_c": 60.0}, {"waited_s": 0.4}),
    "assistant": ("bursty", "bursty", {}, {}),
    "search": ("pace", "default", {}, {}),
    "event-logger": ("pace", "default", {"deadline": "per-token", "kv": "skip"}, {}),
    "mine": ("default", "default", {"kv": "exact", "decision_delay": 1}, {}),
}


@pytest.mark.parametrize("name", CASES)
def test_a_loop_on_what_the_host_knows_decides_as_generate_does(lm, spied, name):
    controller, scenario, changes, options = CASES[name]
    level = ServiceLevel("mine", 9e-3, 0.31e-3) if name == "mine" else name
    loaded = Scenario.load(scenario, **changes)
    controller = PACE if controller == "pace" else Policy.load(controller)
    session = LiveSession(lm, charged_scenario(loaded, controller))
    record = Recorder(RuntimeController(controller, 8).begin("r", name))
    prompt = lm.encode_prompt("Once upon a time there was")
    session.generate(prompt, record, 12, seed=3, slo=level, **options)
    session.close()
    host = emulated_host(loaded) if changes or controller is PACE else None  # else as the policy's card says
    runtime = RuntimeController(controller, 8, host=host)
    replayed(runtime.begin("r", level, len(prompt), 12, **options), record)
    assert record.request.report()["exits"] > 0 or changes


def test_a_shielded_loop_decides_as_a_shielded_generate_does(lm, spied):
    policy = Policy.load("default")
    control = charged_for(load_control("layer"), policy, "train")
    shield = emulated_shield(control.scenario, control.emulator, 64, 64)
    level, prompt = ServiceLevel("tight", 6e-3, 0.2e-3), lm.encode_prompt("The old king had three sons, and")

    def request():
        budget = ErrorBudget.of(control.traces, control.scenario.limits)
        return RuntimeController(budgeted(policy, budget, 8), 8, shield=shield).begin("r", level, len(prompt), 12)

    session, record = LiveSession(lm, control.scenario), Recorder(request())
    session.generate(prompt, record, 12, seed=1, slo=level)
    session.close()
    assert record.request.report()["overruled"] > 0
    replayed(request(), record)


def test_extra_signals_are_told_by_name(lm, spied):
    policy = policy_with(SIGNALS)
    loaded = Scenario.load("default", signals=SIGNALS)
    session, prompt = LiveSession(lm, charged_scenario(loaded, policy)), lm.encode_prompt("Once upon a time there was")
    record = Recorder(RuntimeController(policy, 8).begin("r", "search"))
    session.generate(prompt, record, 8, slo="search")
    session.close()
    assert set(EXTRA_SIGNALS) == set(SIGNALS)
    replayed(RuntimeController(policy, 8, host=emulated_host(loaded)).begin("r", "search", len(prompt), 8), record)


def test_the_loop_of_transformers_is_the_same(lm, spied, monkeypatch):
    import torch

    from clone_rl.runtime import decoding

    monkeypatch.setattr(decoding, "LiveRequest", live_loop.LiveRequest)
    decode = ControlledDecoding.load("default", lm, slo="smart-reply")
    begin, records = decode.runtime.begin, []

    def begun(*args, **options):
        records.append(Recorder(begin(*args, **options)))
        return records[-1]

    monkeypatch.setattr(decode.runtime, "begin", begun)
    monkeypatch.setattr(Recorder, "report", lambda self: self.request.report(), raising=False)
    prompt = torch.tensor([lm.encode("Once upon a time there was")])
    lm.model.generate(prompt, custom_generate=decode, max_new_tokens=10, do_sample=False)
    runtime = RuntimeController.load("default")
    replayed(runtime.begin("1", "smart-reply", prompt.shape[1], 10), records[0])


# Against the kernel, whatever is decided.


def walked(control, controller, host, document, seed):
    """A request of the kernel beside one that is told what the kernel knows: their observations and points."""
    rows, trace = Rows(control.world, 1), control.traces
    observation = rows.reset(np.array([seed]), np.array([0]), np.array([document]))[0]
    state = rows.state[0]
    level = ServiceLevel("drawn", float(state["ttft_s"]), float(state["tpot_s"]))
    length, longest = float(control.world.length[document]), int(state["tokens"])
    request = RuntimeController(controller, control.points, host=host).begin(
        "r", level, int(state["prompt"]), longest, expected_tokens=length
    )
    clock_s = 0.0
    while not state["done"]:
        token, layer, row = int(state["token"]), int(state["layer"]), int(state["row"]) + int(state["token"])
        known = {"busy": bool(state["busy"]), "die_c": state["die_c"]}
        if token and layer:
            known["probe"] = trace.signal[row, layer - 1]
            known |= dict(zip(("norm", "change", "cosine"), trace.hidden[row, layer - 1].tolist(), strict=True))
        elif token:
            left = int(state["left"]) - 1
            known |= {"margin": trace.margin[row - 1, left], "entropy": trace.entropy[row - 1, left]}
        decision = request.decide(**known)
        assert request._seen.tobytes() == observation.tobytes(), (token, layer, request._seen - observation)
        observation = rows.step_one(control.points if decision.exit else decision.operating_point)[0]
        request.observe(LayerCost(float(state["clock_s"]) - clock_s))
        clock_s = float(state["clock_s"])


@pytest.mark.parametrize(
    ("scenario", "changes", "signals", "probes"),
    [
        ("default", {}, (), True),
        ("default", {"granularity": "group", "decision_delay": 1}, SIGNALS, True),
        ("default", {"granularity": "token", "deadline": "per-token"}, ("depth", "norm"), False),
        ("slow-switching", {"granularity": "phase", "kv": "exact"}, ("entropy",), True),
        ("hot", {"ambient_c": 80.0, "kv": "skip"}, (), True),
        ("bursty", {"kv": "exact", "deadline": "per-token", "decision_delay": 1}, (), False),
        ("dram-wall", {}, (), True),
        ("voice", {"slack_low": 0.1, "slack_high": 0.3}, (), True),
    ],
)
def test_whatever_is_decided_the_request_sees_what_the_kernel_shows(scenario, changes, signals, probes):
    loaded = Scenario.load(scenario, signals=signals, **changes)
    host = emulated_host(loaded)
    for seed in range(3):
        controller = Random(seed, probes, signals)
        control = charged_for(load_control("layer", loaded, "test"), controller, "test")
        walked(control, controller, host, control.traces.documents("test")[seed * 50], seed)


def test_layers_with_windows_of_their_own_and_a_throttling_die(trace_folder):
    shape = Workload(layers=10, hidden_size=256, heads=4, kv_heads=2, ff_size=768, windows=(16, 0) * 5)
    traces = load_traces(trace_folder)
    traces = replace(traces, card={**traces.card, "shape": shape.as_dict()})
    control = load_control("layer")
    for kv in ("propagate", "exact", "skip"):
        controller = Random(4)
        scenario = charged_scenario(replace(control.scenario, kv=kv), controller)
        own = Control.of("layer", scenario, traces, "test")
        walked(own, controller, emulated_host(scenario, shape), traces.documents("test")[0], 1)
    runtime = RuntimeController(Random(0), 8, host=emulated_host("default", shape))
    request = runtime.begin("r", "chatbot", 20, 20)
    request.decide(die_c=150.0)
    assert request._seen[OBSERVATION.index("headroom")] < 0
    request.observe(COST)
    request.decide()
    assert request._seen[OBSERVATION.index("point")] == 0.0  # whatever was asked for, only the lowest point is left
    assert request._seen[OBSERVATION.index("headroom")] < 0  # as it was told last


def test_a_shield_beside_a_host_takes_service_levels_by_name():
    policy = Policy.load("default")
    control = charged_for(load_control("layer"), policy, "train")
    shield = emulated_shield(control.scenario, control.emulator, 64, 64)
    runtime = RuntimeController(policy, 8, shield=shield, host=emulated_host("default"))
    request = runtime.begin("r", "code", 20, 30)
    request.decide()
    assert request.slo == "code"
    with pytest.raises(BadValueError, match="a shield needs"):
        RuntimeController(policy, 8, shield=shield).begin("r", "code", 20, 30)


def test_targets_look_as_they_did_in_training_whatever_classes_the_host_has():
    level = Scenario.load("default").slo[0]
    alone = RuntimeController.load("default", host=emulated_host(Scenario.load("default", slo=[vars(level)])))
    seen = []
    for runtime in (RuntimeController.load("default"), alone):
        request = runtime.begin("r", level, 20, 30)
        request.decide()
        seen.append(request._seen.tobytes())
    assert seen[0] == seen[1]


# Wrong calls.


@pytest.fixture(scope="module")
def loaded():
    return RuntimeController.load("default")


def at(controller, boundary, **options):
    """A request of layers and tokens, at such a boundary."""
    controller._point = controller.points - 1
    request = controller.begin("r", "chatbot", prompt_tokens=20, max_new_tokens=30, **options)
    layers = 0 if boundary == "prompt" else 10
    for _ in range(layers + (boundary == "reads")):
        request.decide()
        request.observe(COST)
    return request


@pytest.mark.parametrize(
    ("boundary", "known", "message"),
    [
        ("reads", {}, "no probe reading.*probe=\\(probability of agreement"),
        ("prompt", {"probe": (0.5, 0.1)}, "a probe reading of \\(0.5, 0.1\\) where there is none"),
        ("first", {"probe": (0.5, 0.1)}, "a probe reading of"),
        ("reads", {"probe": (1.5, 0.1)}, "probe is \\(1.5, 0.1\\)"),
        ("reads", {"probe": (-0.1, 0.1)}, "probe is"),
        ("reads", {"probe": (0.5, -0.1)}, "probe is \\(0.5, -0.1\\).*0 or more"),
        ("reads", {"probe": (float("nan"), 0.1)}, "probe is \\(nan"),
        ("reads", {"probe": (0.5, float("inf"))}, "probe is \\(0.5, inf\\)"),
        ("reads", {"probe": 0.5}, "probe is 0.5"),
        ("reads", {"probe": (0.5, 0.1, 0.2)}, "probe is \\(0.5, 0.1, 0.2\\)"),
        ("reads", {"probe": "no"}, "probe is 'no'"),
        ("first", {"busy": 0.5}, "busy is 0.5"),
        ("first", {"busy": None}, "busy is None"),
        ("first", {"busy": "yes"}, "busy is 'yes'"),
        ("first", {"die_c": float("nan")}, "die_c is nan"),
        ("first", {"die_c": -300}, "die_c is -300"),
        ("first", {"die_c": 324.0}, "is it in kelvin"),
        ("first", {"die_c": "hot"}, "die_c is 'hot'"),
        ("first", {"margin": float("nan")}, "margin is nan"),
        ("first", {"norm": 1.0}, "a norm of 1.0 where there is none"),
        ("prompt", {"margin": 1.0}, "a margin of 1.0 where there is none"),
    ],
)
def test_what_is_missing_or_cannot_be_is_refused_and_changes_nothing(loaded, boundary, known, message):
    request, untouched = at(loaded, boundary), at(loaded, boundary)
    for _ in range(2):
        with pytest.raises(BadValueError, match=message):
            request.decide(**known)
    right = {"probe": (0.5, 0.1)} if boundary == "reads" else {}
    assert request.decide(**right) == untouched.decide(**right)
    assert request._seen.tobytes() == untouched._seen.tobytes()
    assert request.report() == untouched.report()


def test_a_name_that_nobody_knows_is_refused_with_a_suggestion(loaded):
    with pytest.raises(UnknownNameError, match="did you mean 'busy'"):
        at(loaded, "prompt").decide(bussy=True)
    with pytest.raises(UnknownNameError, match="unknown argument of decide 'depth'"):
        at(loaded, "first").decide(depth=0.5)  # the request knows it


def test_names_and_arrays_do_not_mix(loaded):
    request, blank = at(loaded, "prompt"), np.zeros(len(OBSERVATION), np.float32)
    with pytest.raises(BadValueError, match="an observation and busy"):
        request.decide(blank, busy=True)
    request.decide(blank)
    request.observe(COST)
    with pytest.raises(BadValueError, match="by name after decisions on observations"):
        request.decide(busy=True)
    request.decide(blank)  # goes on as it began


def test_the_controllers_own_decide_takes_names_too(loaded):
    loaded._point = 7
    loaded.begin("r", "chatbot", prompt_tokens=20, max_new_tokens=30)
    first = loaded.decide(busy=True, die_c=np.float64(30.0))
    loaded.observe(COST)
    assert first == at(loaded, "prompt").decide(busy=np.True_, die_c=30)
    blank = np.zeros(len(OBSERVATION), np.float32)
    loaded.begin("r")
    assert loaded.decide(observation=blank) == loaded.decide(blank)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"slo": "chatbott"}, UnknownNameError, "did you mean 'chatbot'"),
        ({"slo": ""}, UnknownNameError, "unknown service level ''"),
        ({"slo": 3}, BadValueError, "service level 3"),
        ({"prompt_tokens": 0}, BadValueError, "prompt_tokens is 0"),
        ({"max_new_tokens": 0}, BadValueError, "max_new_tokens is 0"),
        ({"max_new_tokens": 2.5}, BadValueError, "max_new_tokens is 2.5"),
        ({"prompt_tokens": "ten"}, BadValueError, "prompt_tokens is 'ten'"),
        ({"waited_s": None}, BadValueError, "waited_s is None"),
        ({"waited_s": -1.0}, BadValueError, "waited_s is -1"),
        ({"expected_tokens": float("nan")}, BadValueError, "expected_tokens is nan"),
        ({"prompt_tokens": 33}, BadValueError, "a prompt of 33 tokens.*32 at most"),
        ({"max_new_tokens": 60}, BadValueError, "10 \\+ 60 tokens.*contexts to 64"),
    ],
)
def test_a_host_that_is_given_needs_to_know_the_request_and_says_so_at_once(options, error, message):
    runtime = RuntimeController(Fixed("performance", 1), 2, host=measured())
    with pytest.raises(error, match=message):
        runtime.begin(**{"request": "r", "slo": "chatbot", "prompt_tokens": 10, "max_new_tokens": 20, **options})


def test_a_response_of_more_tokens_than_it_may_have_is_refused():
    request = RuntimeController(Fixed("performance", 1), 2, host=measured()).begin("r", "chatbot", 10, 2)
    for _ in range(8):
        request.decide()
        request.observe(COST)
    with pytest.raises(BadValueError, match="as many tokens as it may have"):
        request.decide()


def test_a_controller_that_names_no_host_needs_one(loaded):
    request = RuntimeController(Fixed("performance", 7), 8).begin("r", "chatbot", 20, 30)
    with pytest.raises(BadValueError, match=r"does not say which host.*emulated_host"):
        request.decide()
    assert request.decide(np.zeros(len(OBSERVATION), np.float32)) == Decision(7)
    with pytest.raises(BadValueError, match="prompt_tokens is 0"):
        loaded.begin("r", "chatbot").decide()
    with pytest.raises(BadValueError, match="a host of 2 operating points"):
        RuntimeController(Fixed("performance", 7), 8, host=measured())


def test_a_controller_that_reads_no_probe_is_not_asked_for_one_and_one_that_is_told_does_not_look():
    runtime = RuntimeController(Fixed("performance", 7), 8, host=emulated_host("default"))
    request, told = at(runtime, "reads"), at(runtime, "reads")
    request.decide()
    told.decide(probe=(0.99, 1e-3), norm=2.0)
    assert request._seen.tobytes() == told._seen.tobytes()
    assert shown(request, "agree") == 0.0 and shown(request, "kl") == 1.0


def test_signals_that_the_controller_reads_have_to_be_told():
    policy = policy_with(("margin", "norm"))
    runtime = RuntimeController(policy, 8, host=emulated_host("default"))
    request = at(runtime, "first")
    with pytest.raises(BadValueError, match="no margin, and the controller reads it"):
        request.decide()
    request.decide(margin=-25.0)
    request.observe(COST)
    assert request._seen[16:].tolist() == [-1.0, 0.0]
    with pytest.raises(BadValueError, match="no norm, and the controller reads it"):
        request.decide(probe=(0.5, 0.1))
    request.decide(probe=(0.5, 0.1), norm=1.5)
    assert request._seen[16:].tolist() == [-1.0, 0.5]  # the margin is the token's


def test_token_control_is_refused():
    with pytest.raises(BadValueError, match="decides per token"):
        RuntimeController(Policy(policy_with(()).layers, (4, 5)), 4, host=emulated_host("default"))


def test_a_decision_whose_cost_is_not_told_ends_the_controllers_part(loaded, caplog):
    request = at(loaded, "prompt")
    request.decide()
    assert request.decide() == Decision(7)
    assert "not told what its last decisions cost" in request.report()["failure"]
    assert request.report()["degraded"] == 1


def test_an_exit_where_there_is_none_is_the_next_layer():
    class Leaves(Random):
        def act(self, _):
            return np.array([[8]])

    runtime = RuntimeController(Leaves(0), 8, host=emulated_host("default"))
    request = at(runtime, "first")
    assert request.decide() == Decision(7)
    request.observe(COST)
    assert request.report()["exits"] == 0
    assert request.decide(probe=(0.5, 0.1)) == Decision(7, exit=True)
    request.observe(COST)
    assert request.report()["exits"] == 1
    assert request.decide() == Decision(7)
    assert shown(request, "layer") == 0.0


def test_whatever_an_actuator_raises_the_request_is_followed():
    class Broken:
        def set(self, _):
            raise ZeroDivisionError

    runtime = RuntimeController.load("default", actuator=Broken())
    request, fine = at(runtime, "prompt"), at(RuntimeController.load("default"), "prompt")
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            request.decide()
        fine.decide()
        assert request._seen.tobytes() == fine._seen.tobytes()
        request.observe(COST)
        fine.observe(COST)


def test_a_failed_request_is_still_followed(loaded):
    request = at(loaded, "prompt")
    request.decide()
    for _ in range(9):
        assert request.decide() == Decision(7)
    assert request.decide() == Decision(7)
    assert shown(request, "phase") == 1.0 and shown(request, "point") == 1.0


def test_a_host_grows_with_the_contexts_that_are_asked_for():
    runtime = RuntimeController(Random(0), 8, host=emulated_host("default", SMALL))
    for longest in (20, 3000, 60):
        request = runtime.begin("r", "chatbot", longest, longest)
        request.decide()
        assert shown(request, "context") == pytest.approx(min(1.0, longest / SMALL.context))


def test_requests_of_several_threads_do_not_touch_each_other(loaded):
    alone = [at(loaded, "first", waited_s=wait)._seen.copy() for wait in (0.0, 5e-3)]
    found = {}

    def work(wait):
        found[wait] = [at(loaded, "first", waited_s=wait)._seen.copy() for _ in range(50)]

    threads = [threading.Thread(target=work, args=(wait,)) for wait in (0.0, 5e-3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all((seen == alone[0]).all() for seen in found[0.0])
    assert all((seen == alone[1]).all() for seen in found[5e-3])
    assert (alone[0] != alone[1]).any()
