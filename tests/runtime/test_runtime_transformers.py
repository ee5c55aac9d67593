"""Controllers inside ``generate`` of transformers."""

import copy
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
import transformers
from llm_models import CONFIGS, TINY_LAYERS, VOCAB, tiny_probe
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerFast,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
)
from transformers.generation.utils import GenerateDecoderOnlyOutput

import clone_rl.runtime
from clone_rl.agents.error_budget import EARNED
from clone_rl.agents.heuristics import Fixed
from clone_rl.agents.policy import Policy
from clone_rl.agents.registry import controller as controller_of
from clone_rl.agents.rollout import charged_scenario
from clone_rl.envs.control import load_control
from clone_rl.envs.scenario import Scenario, ServiceLevel
from clone_rl.errors import (
    BadValueError,
    CloneRLError,
    MissingExtraError,
    PolicyFileError,
    UnknownNameError,
    UnsupportedModelError,
)
from clone_rl.hw_emulator.workload import Workload
from clone_rl.llm.generation import generate
from clone_rl.llm.live import LiveSession
from clone_rl.llm.model import load_model
from clone_rl.llm.sampling import Sampling
from clone_rl.runtime import ControlledDecoding, ControlledOutput, RuntimeController, pipeline
from clone_rl.runtime.host_model import HostModel

pytest_plugins = ["llm_models"]

PROMPT = torch.arange(7, 27)[None]
NEW = 12
SHAPE = Workload(layers=TINY_LAYERS, hidden_size=32, heads=4, kv_heads=2, ff_size=48, vocab_size=VOCAB, context=128)
KNOWN = ("llama", "qwen2", "gemma2 with soft-capped logits", "gemma3", "gpt2", "gpt-neox", "phi", "olmo2", "opt", "granite")
PROMPT_TEXT = "Question: what is 7 plus 5?"


class Leaves:
    """Top point; leaves the n-th token after ``depths[n]`` layers."""

    name, kind, macs, probes = "leaves", "layer", 0, False

    def __init__(self, depths):
        self.depths, self.token, self.before = depths, 0, 0

    def act(self, observations):
        phase, layer = observations[0, 0], round(float(observations[0, 1]) * TINY_LAYERS)
        if layer == 0:
            self.token = self.token + 1 if phase else 0
        exits = phase > 0 and layer == self.depths[self.token % len(self.depths)]
        return np.array([[8 if exits else 7]])

    def describe(self):
        return {}


def plain(model, ids=PROMPT, **options):
    """What the model generates by itself."""
    options = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0, **options}
    return model.generate(ids, attention_mask=torch.ones_like(ids), **options)


def controlled(controller, model, ids=PROMPT, **options):
    return plain(model, ids, custom_generate=controller, **options)


def never(model, **options):
    return ControlledDecoding.load("performance", model, **{"workload": SHAPE, **options})


@pytest.fixture(scope="module")
def llama(tiny):
    return tiny("llama")


@pytest.fixture(scope="module")
def attached(llama):
    return never(llama)


@pytest.mark.parametrize("family", CONFIGS)
def test_a_family(tiny, family):
    """Without exits it is the text of the model; with exits, that of the same rule without a chip."""
    model, scenario = tiny(family), Scenario.load("default")
    host = HostModel.of(model, workload=SHAPE)
    controller, expected = ControlledDecoding(Fixed("performance", 7), host, scenario), plain(model)
    assert torch.equal(controlled(controller, model), expected)
    assert len(set(expected[0, PROMPT.shape[1] :].tolist())) >= 3
    report = controller.report()
    assert report["tokens"] == NEW
    assert report["mean_depth"] == TINY_LAYERS
    assert report["energy_j"] > 0
    assert report["agreement"] == 1

    depths, asked = (4, 2, 1, 3, 4), []

    def rule(layer, _hidden):
        if layer == 0:
            asked.append(depths[(len(asked) + 1) % len(depths)])
        return layer == asked[-1]

    early = generate(host.stepper, PROMPT, rule, max_new_tokens=NEW, return_dict_in_generate=True)
    controller = ControlledDecoding(Leaves(depths), host, scenario)
    assert torch.equal(controlled(controller, model), early.sequences)
    assert (controller.request.points[:NEW] >= 0).sum(1).tolist() == early.depths
    assert set(early.depths) == {1, 2, 3, 4}
    assert controller.report()["mean_depth"] == pytest.approx(np.mean(early.depths))
    assert controller.request.ledger.counts()["KV_FILL"] == sum(depth < TINY_LAYERS for depth in early.depths)


@pytest.mark.parametrize("family", KNOWN)
def test_the_chip_is_loaded_with_the_models_own_shape(tiny, family):
    model = tiny(family)
    controller = ControlledDecoding.load("performance", model)
    shape = controller.emulator.workload
    assert (shape.layers, shape.hidden_size, shape.vocab_size) == (TINY_LAYERS, 32, VOCAB)
    assert torch.equal(controlled(controller, model, max_new_tokens=3), plain(model, max_new_tokens=3))


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": True, "temperature": 0.9},
        {"do_sample": True, "top_k": 7, "top_p": 0.8, "repetition_penalty": 1.3},
        {"do_sample": False, "no_repeat_ngram_size": 2, "bad_words_ids": [[3], [9]]},
        {"do_sample": True, "min_new_tokens": 5, "eos_token_id": list(range(80))},
        {"do_sample": False, "eos_token_id": list(range(0, 160, 7))},
    ],
)
def test_processors_sampling_and_ends_are_those_of_generate(llama, attached, options):
    answers = []
    for generate_one in (plain, lambda model, **rest: controlled(attached, model, **rest)):
        torch.manual_seed(3)
        answers.append(generate_one(llama, max_new_tokens=30, **options))
    assert torch.equal(*answers)


class Only(LogitsProcessor):
    """Lets a few tokens through, in turn."""

    def __call__(self, input_ids, scores):
        scores[:, torch.arange(VOCAB) % 5 != input_ids.shape[1] % 5] = -torch.inf
        return scores


class After(StoppingCriteria):
    """Ends at a length."""

    def __init__(self, length):
        self.length = length

    def __call__(self, input_ids, *_, **__):
        return torch.full((1,), input_ids.shape[1] >= self.length, dtype=torch.bool)


def test_processors_and_criteria_of_ones_own(llama, attached):
    options = {"logits_processor": LogitsProcessorList([Only()]), "stopping_criteria": StoppingCriteriaList([After(25)])}
    out = controlled(attached, llama, **options)
    assert torch.equal(out, plain(llama, **options))
    assert out.shape[1] == 25
    assert all(token % 5 == position % 5 for position, token in enumerate(out[0].tolist()) if position >= PROMPT.shape[1])
    assert attached.report()["tokens"] == 5
    assert attached.request.done


def test_everything_that_generate_returns_and_the_report(llama, attached):
    options = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    out, expected = controlled(attached, llama, **options), plain(llama, **options)
    assert isinstance(out, ControlledOutput)
    assert isinstance(out, GenerateDecoderOnlyOutput)
    assert torch.equal(out.sequences, expected.sequences)
    for name in ("scores", "logits"):
        assert len(out[name]) == NEW
        for one, other in zip(out[name], expected[name], strict=True):
            assert torch.allclose(one, other, atol=1e-4)
    assert out.past_key_values.get_seq_length() == PROMPT.shape[1] + NEW - 1
    assert out.report == attached.report()
    assert out["report"]["prompt_tokens"] == PROMPT.shape[1]
    bare = controlled(attached, llama, return_dict_in_generate=True)
    assert bare.scores is bare.logits is None


class Recorder:
    """A streamer that keeps what it gets."""

    def __init__(self):
        self.got, self.ended = [], 0

    def put(self, value):
        self.got.append(value.tolist())

    def end(self):
        self.ended += 1


def test_a_streamer_given_to_generate_gets_what_it_always_gets(llama, attached):
    seen = []
    for generate_one in (plain, lambda model, **rest: controlled(attached, model, **rest)):
        streamer = Recorder()
        out = generate_one(llama, streamer=streamer)
        seen.append(streamer)
    assert seen[0].got == seen[1].got
    assert [seen[1].got[0][0], *(token for piece in seen[1].got[1:] for token in piece)][1:] == out[
        0, PROMPT.shape[1] :
    ].tolist()
    assert seen[0].ended == seen[1].ended == 1


def test_a_streamer_is_ended_even_where_the_request_is_refused(llama, attached):
    streamer = Recorder()
    with pytest.raises(BadValueError):
        controlled(attached, llama, streamer=streamer, output_attentions=True, return_dict_in_generate=True)
    assert streamer.ended == 1


def test_text_streams_from_another_thread(lm):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=lm.tokenizer.backend)
    controller = ControlledDecoding.load("default", lm)
    ids = torch.tensor([lm.encode(PROMPT_TEXT)])
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)
    options = {"streamer": streamer, "custom_generate": controller}
    thread = threading.Thread(target=plain, args=(lm.model, ids), kwargs=options)
    thread.start()
    text = "".join(streamer)
    thread.join()
    assert text == lm.decode(controlled(controller, lm.model, ids)[0, ids.shape[1] :].tolist())


@pytest.mark.parametrize("seed", [0, 3])
def test_the_account_is_that_of_a_session_of_the_package(lm, seed):
    ids, policy = torch.tensor([lm.encode(PROMPT_TEXT)]), Policy.load("default")
    scenario = charged_scenario(Scenario.load("default"), policy)
    session = LiveSession(lm, scenario)
    answer = session.generate(PROMPT_TEXT, RuntimeController(policy, 8), 14, Sampling(0.0), seed)
    controller = ControlledDecoding.load("default", lm, seed=seed, measure=True)
    out = controlled(controller, lm.model, ids, max_new_tokens=14, eos_token_id=sorted(lm.end_ids))
    assert out[0, ids.shape[1] :].tolist() == answer.token_ids
    report = controller.report()
    assert {name: report[name] for name in answer.summary() if name != "text"} == {
        name: value for name, value in answer.summary().items() if name != "text"
    }
    assert answer.figures["depth"] < 10 * len(answer.token_ids)
    assert sum(report["energy_terms_j"].values()) == pytest.approx(report["energy_j"])
    assert report["controller"]["energy_j"] == pytest.approx(report["energy_j"])
    assert (controller.request.points[: len(answer.points)] == answer.points).all()


def test_quality_is_only_known_where_it_is_measured(lm):
    ids = torch.tensor([lm.encode(PROMPT_TEXT)])
    for measure in (False, True):
        controller = ControlledDecoding.load("default", lm, measure=measure)
        controlled(controller, lm.model, ids)
        report = controller.report()
        assert report["mean_depth"] < 10
        assert (report["agreement"] is not None) == (report["dnll"] is not None) == measure


def test_service_levels_and_waits(llama, attached):
    mine = ServiceLevel("mine", 0.5, 0.001)
    controlled(attached, llama, slo=mine, waited_s=0.25)
    report = attached.report()
    assert report["slo"] == "mine"
    assert report["targets"] == {"ttft_s": 0.5, "tpot_s": 0.001}
    assert 0.25 < report["ttft_s"] < 0.5
    controlled(attached, llama, slo="chatbot")
    assert attached.report()["slo"] == "chatbot"
    standing = never(llama, slo="search")
    controlled(standing, llama)
    assert standing.report()["slo"] == "search"
    with pytest.raises(UnknownNameError, match="service level 'nothing'"):
        controlled(attached, llama, slo="nothing")
    for none in (0, False, ""):
        with pytest.raises((BadValueError, UnknownNameError), match="service level"):
            controlled(attached, llama, slo=none)
    with pytest.raises(BadValueError, match="waited_s is -1"):
        controlled(attached, llama, waited_s=-1)
    with pytest.raises(UnknownNameError, match="service level 'nothing'"):
        never(llama, slo="nothing")
    names = set()
    for _ in range(12):
        controlled(attached, llama, max_new_tokens=1)
        names.add(attached.report()["slo"])
    assert len(names) > 1


def filled():
    cache = DynamicCache()
    cache.update(torch.zeros(1, 2, 3, 8), torch.zeros(1, 2, 3, 8), 0)
    return cache


REFUSED = {
    "several sequences": (lambda _: {"inputs": PROMPT.repeat(2, 1)}, r"input_ids of shape \(2, 20\)"),
    "several answers": (lambda _: {"do_sample": True, "num_return_sequences": 2}, "num_return_sequences is 2"),
    "beams": (lambda _: {"num_beams": 2}, "beam search under control"),
    "sampled beams": (lambda _: {"num_beams": 2, "do_sample": True}, "beam sample under control"),
    "contrastive search": (lambda _: {"penalty_alpha": 0.6, "top_k": 4}, "contrastive search under control"),
    "an assistant": (lambda model: {"assistant_model": model}, "assisted generation under control"),
    "prompt lookup": (lambda _: {"prompt_lookup_num_tokens": 2}, "assisted generation under control"),
    "early exit of generate": (lambda _: {"assistant_early_exit": 2}, "assisted generation under control"),
    "padding": (lambda _: {"attention_mask": torch.tensor([[0] + [1] * 19])}, "attention_mask hides tokens"),
    "embeddings": (lambda _: {"inputs": None, "inputs_embeds": torch.zeros(1, 3, 32)}, "input_ids"),
    "a cache in use": (lambda _: {"past_key_values": filled()}, "past_key_values hold tokens"),
    "another cache": (lambda _: {"cache_implementation": "static"}, "cache_implementation 'static'"),
    "attentions": (lambda _: {"output_attentions": True, "return_dict_in_generate": True}, "output_attentions"),
    "states": (lambda _: {"output_hidden_states": True, "return_dict_in_generate": True}, "output_hidden_states"),
    "a context that is too short": (lambda _: {"max_new_tokens": 109}, "ask for at most 108 new tokens"),
    "a token that there is not": (lambda _: {"inputs": torch.tensor([[1, 160]])}, "tokens 0 to 159"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_served_is_refused_by_name(llama, attached, what):
    make, reason = REFUSED[what]
    options = {"inputs": PROMPT, "max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0, **make(llama)}
    expected = controlled(attached, llama)
    with pytest.raises(BadValueError, match=reason):
        llama.generate(**options, custom_generate=attached)
    assert torch.equal(controlled(attached, llama), expected)


def test_a_mask_of_ones_is_no_padding(llama, attached):
    expected = plain(llama)
    for mask in (torch.ones_like(PROMPT), None):
        out = llama.generate(
            PROMPT, attention_mask=mask, custom_generate=attached, max_new_tokens=NEW, do_sample=False, pad_token_id=0
        )
        assert torch.equal(out, expected)


def test_another_model_than_the_one_it_is_attached_to_is_refused(tiny, attached):
    with pytest.raises(BadValueError, match="attached to another LlamaForCausalLM"):
        controlled(attached, tiny("llama", seed=1))


def test_models_that_cannot_be_served_are_refused_by_name():
    sizes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 4}
    mamba = AutoModelForCausalLM.from_config(transformers.MambaConfig(**sizes, state_size=4)).eval()
    t5 = transformers.T5ForConditionalGeneration(
        transformers.T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=4, num_heads=4)
    ).eval()
    for model, reason in ((mamba, "recurrent layers"), (t5, "encoder-decoder"), (torch.nn.Linear(2, 2), "not a transformers")):
        with pytest.raises(UnsupportedModelError, match=reason):
            ControlledDecoding.load("performance", model)


def test_a_shape_that_is_not_known_can_be_given(tiny):
    model = tiny("mixtral")
    with pytest.raises(UnsupportedModelError, match=r"shape is not known.*workload=Workload"):
        ControlledDecoding.load("performance", model)
    with pytest.raises(BadValueError, match="a workload of 5 layers"):
        never(model, workload=Workload(layers=5, hidden_size=32, heads=4, kv_heads=2, ff_size=48))


def test_a_controller_that_reads_a_probe_needs_one(llama, tmp_path):
    with pytest.raises(BadValueError, match=r"'default' reads an exit probe and LlamaForCausalLM has none.*clone-rl probe"):
        ControlledDecoding.load("default", llama, strict=False)
    with pytest.raises(BadValueError, match="a probe of 4 exits"):
        ControlledDecoding.load("default", llama, probe=tiny_probe(4, 32), strict=False)
    tiny_probe(3, 32).save(tmp_path / "probe.safetensors")
    by_file = ControlledDecoding.load("default", llama, probe=tmp_path / "probe.safetensors", strict=False)
    by_hand = ControlledDecoding.load("default", llama, probe=tiny_probe(3, 32), strict=False)
    assert torch.equal(controlled(by_file, llama), controlled(by_hand, llama))
    assert by_file.report() == by_hand.report()
    assert by_file.report()["energy_terms_j"]["probe"] > 0


def test_a_probe_beside_the_weights_is_found(llama, tmp_path):
    llama.save_pretrained(tmp_path)
    tiny_probe(3, 32).save(tmp_path / "probe.safetensors")
    again = AutoModelForCausalLM.from_pretrained(tmp_path, local_files_only=True).eval()
    controller = ControlledDecoding.load("default", again, strict=False)
    controlled(controller, again)
    assert controller.report()["energy_terms_j"]["probe"] > 0
    without = ControlledDecoding.load("performance", again, probe=False)
    assert torch.equal(controlled(without, again), plain(again))


def test_a_policy_for_another_model_or_scenario_is_refused_unless_asked_for(lm, llama):
    probe = tiny_probe(3, 32)
    with pytest.raises(BadValueError, match=r"'default' was trained on another model than LlamaForCausalLM.*strict=False"):
        ControlledDecoding.load("default", llama, probe=probe)
    for scenario in ("voice", Scenario.load("default", interference={"slowdown": 1.0})):
        with pytest.raises(BadValueError, match=r"policy 'default' was trained on scenario 'default', not this"):
            ControlledDecoding.load("default", lm, scenario=scenario)
        assert ControlledDecoding.load("default", lm, scenario=scenario, strict=False).requests == 0
    assert ControlledDecoding.load("hot", lm).scenario.name == "hot"
    assert ControlledDecoding.load("default", lm, scenario="default").scenario.name == "default"
    with pytest.raises(PolicyFileError, match="made for 8 operating points and orin-nano"):
        board = Scenario.load("default", chip="orin-nano", switching="", regulator="")
        ControlledDecoding.load("default", lm, scenario=board, strict=False)


def test_names_that_are_none_are_refused(lm, llama, attached):
    with pytest.raises(UnknownNameError, match=r"controller 'defaul'.*did you mean 'default'"):
        ControlledDecoding.load("defaul", lm)
    with pytest.raises(PolicyFileError):
        ControlledDecoding.load("no/such/policy.safetensors", lm)
    with pytest.raises(CloneRLError):
        ControlledDecoding.load("performance", "no-such-folder")
    with pytest.raises(BadValueError, match="no request yet"):
        never(llama).report()


def test_powersave_runs_at_the_lowest_point(llama):
    controller = never(llama)
    slow = ControlledDecoding.load("powersave", llama, workload=SHAPE)
    controlled(controller, llama)
    controlled(slow, llama)
    assert set(slow.request.points[:NEW].ravel().tolist()) == {0}
    assert slow.report()["energy_terms_j"]["layer"] < controller.report()["energy_terms_j"]["layer"]


def test_requests_are_numbered_and_depend_on_the_seed_alone(llama):
    figures = []
    for seed in (0, 0, 1):
        controller = never(llama, seed=seed)
        reports = []
        for _ in range(3):
            controlled(controller, llama)
            reports.append({k: v for k, v in controller.report().items() if k != "controller"})
        figures.append(reports)
    assert figures[0] == figures[1]
    assert figures[0][1:] == figures[2][:2]


def test_threads_take_turns(llama, attached):
    expected, answers = plain(llama), []
    threads = [threading.Thread(target=lambda: answers.append(controlled(attached, llama))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 4
    assert all(torch.equal(answer, expected) for answer in answers)


def test_what_fails_inside_leaves_everything_usable(llama, attached):
    class Fails(Recorder):
        def put(self, value):
            super().put(value)
            if len(self.got) == 4:
                raise RuntimeError("gone")

    before = [dict(layer.__dict__) for layer in llama.model.layers]
    streamer = Fails()
    with pytest.raises(RuntimeError, match="gone"):
        controlled(attached, llama, streamer=streamer)
    assert streamer.ended == 1
    assert [dict(layer.__dict__) for layer in llama.model.layers] == before
    assert attached.report()["tokens"] == 2
    assert torch.equal(controlled(attached, llama), plain(llama))


def test_a_pipeline_gives_text_and_report(lm):
    generator = pipeline("text-generation", model="default", controller="default", seed=4)
    options = {"max_new_tokens": 10, "do_sample": False}
    [answer] = generator(PROMPT_TEXT, **options)
    session = LiveSession(lm, charged_scenario(Scenario.load("default"), Policy.load("default")))
    expected = session.generate(PROMPT_TEXT, RuntimeController.load("default"), 10, Sampling(0.0), 4)
    assert answer["generated_text"] == PROMPT_TEXT + expected.text
    assert answer["report"]["energy_j"] == pytest.approx(expected.figures["energy_j"])
    [[first], [second]] = generator(["The king", PROMPT_TEXT], return_full_text=False, slo="chatbot", **options)
    assert second["generated_text"] == expected.text
    assert first["report"]["slo"] == second["report"]["slo"] == "chatbot"
    assert first["report"]["prompt_tokens"] == len(lm.encode("The king"))


def test_a_pipeline_of_ones_own_model(llama, lm):
    with pytest.raises(BadValueError, match="no tokenizer"):
        pipeline(model=llama, controller="performance", workload=SHAPE)
    with pytest.raises(UnknownNameError, match="task 'translation'"):
        pipeline("translation")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=lm.tokenizer.backend, pad_token="<|end|>")
    generator = pipeline(model=llama, controller="performance", tokenizer=tokenizer, workload=SHAPE, max_new_tokens=5)
    [answer] = generator("(((", do_sample=False)
    assert answer["report"]["tokens"] == 5


def test_importing_the_package_imports_no_torch():
    code = "import clone_rl.runtime, sys; assert not {'torch', 'transformers'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = clone_rl.runtime.nothing


def test_without_transformers_the_extra_is_named(monkeypatch):
    monkeypatch.delitem(sys.modules, "clone_rl.runtime.decoding")
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setitem(sys.modules, "transformers.generation", None)
    monkeypatch.setitem(sys.modules, "transformers.generation.utils", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'clone-rl\[llm\]'"):
        _ = clone_rl.runtime.ControlledDecoding


@pytest.mark.slow
def test_a_shield_keeps_the_deadlines_that_the_top_point_keeps():
    model = load_model("default")
    prompt, options = torch.tensor([model.encode(PROMPT_TEXT)]), {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
    slowest = Fixed("slowest", 0)

    def late(controller, slo, shield):
        decoding = ControlledDecoding.load(controller, model, scenario="default", slo=slo, shield=shield)
        model.model.generate(prompt, custom_generate=decoding, **options)
        return decoding.report()["deadline_misses"], decoding.report()["controller"]

    probing = ControlledDecoding.load("performance", model, scenario="default")
    model.model.generate(prompt, custom_generate=probing, **options)
    at_top = probing.report()
    tight = ServiceLevel("tight", 1.6 * at_top["ttft_s"], 1.6 * at_top["tpot_s"])  # a busy co-runner included
    assert late(Fixed("top", 7), tight, shield=False)[0] == 0
    assert late(slowest, tight, shield=False)[0] > 0
    misses, counted = late(slowest, tight, shield=True)
    assert misses == counted["late"] == 0
    assert counted["overruled"] > 0
    loose = ServiceLevel("loose", 1.0, 1.0)
    assert late(slowest, loose, shield=True)[1]["overruled"] == 0


def test_a_shield_holds_the_limits_on_quality_of_the_model_whose_traces_there_are():
    model = load_model("default")
    scenario = Scenario.load("default")
    for shield in (False, True):
        controller = ControlledDecoding.load("default", model, scenario=scenario, shield=shield).runtime.controller
        assert hasattr(controller, "budget") is shield
    np.testing.assert_allclose(controller.budget.earned, [EARNED * scenario.limits.disagree, EARNED * scenario.limits.dnll])


def test_every_name_that_generate_takes_is_taken(lm, tmp_path):
    pace = ControlledDecoding.load("pace", lm)
    made = controller_of("pace", load_control("layer"))
    assert pace.runtime.controller.describe() == made.describe()  # the shipped tuned settings
    calm = ControlledDecoding.load("calm-race", lm, scenario="hot")
    assert calm.scenario.name == "hot" and calm.runtime.controller.name == "calm-race"
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n\n\nclass Mine:\n    probes = False\n\n    def act(self, observations):\n"
        "        return np.full((len(observations), 1), 2)\n"
    )
    mine = ControlledDecoding.load(f"{tmp_path / 'mine.py'}:Mine", lm)
    controlled(mine, lm.model)
    assert set(mine.request.points[mine.request.points >= 0]) == {2}
    with pytest.raises(UnknownNameError, match="did you mean 'pace'"):
        ControlledDecoding.load("pase", lm)


def test_a_response_ends_with_a_stop_string(lm):
    prompt, never_exits = torch.tensor([lm.encode("Once upon a time")]), ControlledDecoding.load("performance", lm)
    options = {"max_new_tokens": 40, "do_sample": False}
    told = plain(lm.model, prompt, **options, stop_strings=["er"], tokenizer=lm.hf_tokenizer)
    assert prompt.shape[1] < told.shape[1] < prompt.shape[1] + 40
    assert "er" in lm.decode(told[0, prompt.shape[1] :].tolist())
    for asked in (
        {"stop_strings": ["er"], "tokenizer": lm.hf_tokenizer},
        {"stop_strings": "er"},
        *({"stopping_criteria": [transformers.StopStringCriteria(one, ["er"])]} for one in (lm.tokenizer, lm.hf_tokenizer)),
    ):
        assert torch.equal(controlled(never_exits, lm.model, prompt, **options, **asked), told)


def test_a_model_without_its_tokenizer_takes_one_for_stop_strings(llama, lm):
    with pytest.raises(BadValueError, match=r"tokenizer is not known.*ControlledDecoding.load\(..., tokenizer=...\)"):
        controlled(ControlledDecoding.load("performance", llama), llama, stop_strings=["a"])
    with_one = ControlledDecoding.load("performance", llama, tokenizer=lm.hf_tokenizer)
    assert controlled(with_one, llama, stop_strings=["never there"]).shape == plain(llama).shape


def test_the_tokenizer_of_a_model_is_one_of_transformers(lm):
    text = "Once upon a time"
    assert lm.hf_tokenizer(text)["input_ids"] == lm.encode(text)
    assert lm.tokenizer(text, add_special_tokens=False)["input_ids"] == lm.tokenizer.encode(text)
    assert copy.deepcopy(lm.tokenizer).get_vocab() == lm.tokenizer.get_vocab() == lm.hf_tokenizer.get_vocab()
    with pytest.raises(AttributeError):
        lm.tokenizer.nothing_of_this_name  # noqa: B018
