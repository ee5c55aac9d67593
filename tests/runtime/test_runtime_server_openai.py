"""The embedded model behind the official client."""

import json

import openai
import pytest
from serving import client, error_of, http, post, serving

from clone_rl.agents.heuristics import Fixed
from clone_rl.agents.rollout import charged_scenario
from clone_rl.envs.scenario import Scenario, ServiceLevel
from clone_rl.errors import PolicyFileError, UnknownNameError
from clone_rl.llm.live import LiveSession
from clone_rl.llm.model import load_model
from clone_rl.llm.sampling import Sampling
from clone_rl.runtime import RuntimeController, emulated_shield
from clone_rl.runtime.server import Settings
from clone_rl.runtime.server.service import Service

pytest_plugins = ["serving"]

PROMPT = "Once upon a time"
QUESTION = "Ben went to the castle. Peter has the apple. Clara went to the market. What does Peter have?\nAnswer:"
REPORT = {
    "energy_j", "energy_per_token_j", "deadline_misses", "mean_depth", "exits", "ttft_s", "tpot_s", "waited_s", "slo", "seed",
    "controller", "overruled", "degraded",
}  # fmt: skip


@pytest.fixture(scope="module")
def controller():
    return RuntimeController.load("default")


@pytest.fixture(scope="module")
def session(controller):
    found = LiveSession(load_model(), charged_scenario(Scenario.load("default"), controller.controller))
    found.generate([0], controller.begin("first"), 2)  # compiles, where nothing is compiled yet
    return found


@pytest.fixture(scope="module")
def served(session, controller):
    with serving(session, controller) as running:
        yield running


@pytest.fixture(scope="module")
def api(served):
    return client(served)


def ask(**more):
    return {"model": "default", "prompt": PROMPT, "max_tokens": 8, "temperature": 0, **more}


def chat(**more):
    return {"model": "default", "messages": [{"role": "user", "content": QUESTION}], "temperature": 0, "seed": 4, **more}


def test_a_completion_is_what_the_session_generates_with_its_account(api, session, controller):
    found = api.completions.create(**ask(seed=5, extra_body={"slo": "code"}))
    level = next(level for level in session.scenario.slo if level.name == "code")
    direct = session.generate(PROMPT, controller.begin("again"), 8, Sampling(0.0), 5, slo=level)
    assert found.choices[0].text == direct.text
    assert (found.object, found.choices[0].finish_reason) == ("text_completion", "length")
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (len(session.lm.encode(PROMPT)), 8)
    assert found.usage.total_tokens == found.usage.prompt_tokens + 8
    report, summary = found.clone_rl, direct.summary()
    assert report.keys() == REPORT
    for key in ("energy_j", "energy_per_token_j", "deadline_misses", "mean_depth", "ttft_s", "tpot_s", "waited_s"):
        assert report[key] == summary[key], key
    assert report["slo"] == {"class": "code", "ttft_s": level.ttft_s, "tpot_s": level.tpot_s}
    assert (report["seed"], report["controller"]) == (5, "steady")


@pytest.mark.parametrize("temperature", [0, 0.8])
def test_a_stream_is_the_same_text_in_pieces_with_the_account_in_its_last_chunk(api, temperature):
    whole = api.completions.create(**ask(seed=3, temperature=temperature, max_tokens=12))
    chunks = list(api.completions.create(**ask(seed=3, temperature=temperature, max_tokens=12, stream=True)))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert len(chunks) > 6
    assert {chunk.id for chunk in chunks} == {chunks[0].id} != {whole.id}
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]
    assert chunks[-1].clone_rl == whole.clone_rl
    assert not any(hasattr(chunk, "clone_rl") for chunk in chunks[:-1])


def test_a_chat_answers_and_streams_with_a_count_of_tokens(api, session):
    whole = api.chat.completions.create(**chat())
    assert whole.choices[0].message.content == " the apple."
    assert (whole.choices[0].message.role, whole.choices[0].finish_reason) == ("assistant", "stop")
    assert whole.usage.completion_tokens == 4  # with the end
    assert whole.usage.prompt_tokens == len(session.lm.encode(QUESTION))
    chunks = list(api.chat.completions.create(**chat(stream=True, stream_options={"include_usage": True})))
    *text, ending, counted = chunks
    assert text[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content for chunk in text) == " the apple."
    assert ending.choices[0].finish_reason == "stop"
    assert (counted.choices, counted.usage) == ([], whole.usage)
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert counted.clone_rl == whole.clone_rl
    assert not hasattr(ending, "clone_rl")


def test_the_wire_has_server_sent_events_that_end_with_done(served):
    with http.stream("POST", f"{served.url}/v1/chat/completions", json=chat(stream=True)) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = answer.read().decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(json.loads(event.removeprefix("data: "))["object"] == "chat.completion.chunk" for event in events[:-2])


def test_a_stop_string_ends_text_and_generation(api):
    whole = api.completions.create(**ask(max_tokens=20))
    words = whole.choices[0].text.split(" ")
    stop = f" {words[4]} {words[5][:1]}"
    assert stop in whole.choices[0].text
    found = api.completions.create(**ask(max_tokens=20, stop=["never said", stop]))
    assert found.choices[0].text == whole.choices[0].text.partition(stop)[0]
    assert found.choices[0].finish_reason == "stop"
    streamed = list(api.completions.create(**ask(max_tokens=20, stop=stop, stream=True)))
    assert "".join(chunk.choices[0].text for chunk in streamed) == found.choices[0].text
    # Nothing is generated or charged behind it.
    assert found.usage.completion_tokens < 20
    assert found.clone_rl["energy_j"] < whole.clone_rl["energy_j"]


def test_a_seed_repeats_a_response_and_without_one_they_differ(api):
    first, same = (api.completions.create(**ask(seed=11, temperature=1.5, max_tokens=12)) for _ in range(2))
    assert (first.choices[0].text, first.clone_rl) == (same.choices[0].text, same.clone_rl)
    free = [api.completions.create(**ask(temperature=1.5, max_tokens=12)) for _ in range(3)]
    assert len({answer.choices[0].text for answer in free}) == 3
    again = api.completions.create(**ask(temperature=1.5, max_tokens=12, seed=free[0].clone_rl["seed"]))
    assert again.choices[0].text == free[0].choices[0].text


def test_tokens_are_taken_as_a_prompt(api, session):
    ids = session.lm.encode(PROMPT)
    assert api.completions.create(**ask(prompt=ids)).choices[0].text == api.completions.create(**ask()).choices[0].text
    for wrong in ([5, session.lm.shape.vocab_size], [-1], [10**30], [1] * session.lm.shape.context):
        with pytest.raises(openai.BadRequestError) as caught:
            api.completions.create(**ask(prompt=wrong))
        assert caught.value.param == "prompt"


def test_a_service_level_decides_what_the_controller_spends(api):
    slow = {"ttft_s": 0.04, "tpot_s": 0.004}
    fast = {"X-SLO-TTFT-S": "0.004", "X-SLO-TPOT-S": "0.0003"}
    relaxed = api.completions.create(**ask(seed=1, max_tokens=16, extra_body={"slo": slow})).clone_rl
    hurried = api.completions.create(**ask(seed=1, max_tokens=16, extra_headers=fast)).clone_rl
    assert relaxed["slo"] == {"class": "request", **slow}
    assert hurried["slo"] == {"class": "request", "ttft_s": 0.004, "tpot_s": 0.0003}
    assert hurried["tpot_s"] < 0.8 * relaxed["tpot_s"]
    named = api.completions.create(**ask(extra_headers={"X-SLO-Class": "search"})).clone_rl
    assert named["slo"]["class"] == "search"
    assert api.completions.create(**ask()).clone_rl["slo"]["class"] == "chatbot"  # the scenario's first


def test_the_list_of_models_is_the_one_model(api, session):
    assert [model.id for model in api.models.list()] == ["default"]
    assert api.models.retrieve("default").max_model_len == session.lm.shape.context


@pytest.mark.parametrize(
    ("change", "kind", "param"),
    [
        ({"model": "gpt-5"}, openai.NotFoundError, "model"),
        ({"model": "../default"}, openai.NotFoundError, "model"),
        ({"model": "/etc/passwd"}, openai.NotFoundError, "model"),
        ({"prompt": ""}, openai.BadRequestError, "prompt"),
        ({"prompt": "word " * 300}, openai.BadRequestError, "prompt"),
        ({"top_p": 0.5}, openai.BadRequestError, "top_p"),
        ({"n": 2}, openai.BadRequestError, "n"),
        ({"max_tokens": 0}, openai.BadRequestError, "max_tokens"),
        ({"extra_body": {"slo": "fast"}}, openai.BadRequestError, "slo"),
        ({"extra_body": {"slo": {"ttft_s": 1e300, "tpot_s": 1}}}, openai.BadRequestError, "slo.ttft_s"),
        ({"extra_headers": {"X-SLO-Class": "fast"}}, openai.BadRequestError, "X-SLO-Class"),
    ],
)
def test_errors_are_those_of_the_client(api, change, kind, param):
    with pytest.raises(kind) as caught:
        api.completions.create(**ask(**change))
    assert caught.value.param == param
    with pytest.raises(kind):
        api.completions.create(**ask(**change, stream=True))


@pytest.mark.parametrize(
    "prompt", ["a\x00b", "\x1b[31m red \x07", "\u202e right to left \u200b", "a\r\n\tb", "\ufffe\uffff", "😀 é"]
)
def test_control_characters_are_text_like_any_other(served, prompt):
    answers = [post(served, ask(prompt=prompt, max_tokens=2, stream=stream)) for stream in (False, True)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[0].json()["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize("prompt", ["\\ud800", "\\udfff tail", " ", "\\n\\t"])
def test_what_is_no_text_is_a_clean_error(served, prompt):
    body = json.dumps(ask()).replace(json.dumps(PROMPT), f'"{prompt}"').encode()
    answer = post(served, body)
    assert answer.status_code == 400
    assert error_of(answer)["param"] == "prompt"


def test_targets_that_no_kernel_can_follow_are_refused(served):
    answer = post(served, ask(max_tokens=200, slo={"ttft_s": 3600, "tpot_s": 3600}))
    assert answer.status_code == 400
    assert "at most" in error_of(answer)["message"]


def test_a_controller_for_another_model_or_chip_is_refused_by_name(session, controller):
    settings = Settings()
    card = controller.controller.card
    try:
        controller.controller.__dict__["card"] = {**card, "model_sha256": "0" * 64}
        with pytest.raises(PolicyFileError, match="'mine' was trained on another model than 'default'"):
            Service(session, controller, "mine", settings)
    finally:
        controller.controller.__dict__["card"] = card
    other = type("Other", (), {"points": 3})()
    with pytest.raises(PolicyFileError, match="'mine' was made for 3 operating points and asic28-sram has 8"):
        Service(session, other, "mine", settings)
    with pytest.raises(UnknownNameError, match="unknown service level 'fast'"):
        Service(session, controller, "default", Settings(slo="fast"))
    assert Service(session, controller, "default", Settings(slo="code")).worker is not None


def test_the_default_class_is_what_the_settings_say(session, controller):
    with serving(session, controller, slo="assistant") as running:
        found = client(running).completions.create(**ask(max_tokens=1)).clone_rl
        assert found["slo"]["class"] == "assistant"
        assert ServiceLevel("assistant", found["slo"]["ttft_s"], found["slo"]["tpot_s"]) in session.scenario.slo


def test_a_shield_keeps_a_careless_controller_in_time(session):
    shield = emulated_shield(session.scenario, session.emulator, session.lm.shape.context, session.lm.shape.context)
    for guarded in (None, shield):
        slow = RuntimeController(Fixed("powersave", 0), 8, shield=guarded)
        with serving(session, slow) as running:
            found = post(running, ask(max_tokens=24, slo="chatbot")).json()["clone_rl"]
        assert (found["deadline_misses"] == 0) == (found["overruled"] > 0) == (guarded is not None)
