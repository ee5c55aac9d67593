"""What clients may ask for, and how they are told that they may not."""

import json
import subprocess
import sys

import pytest

from clone_rl.envs.scenario import ServiceLevel
from clone_rl.errors import BadFileError, BadValueError, UnknownNameError
from clone_rl.llm.sampling import Sampling
from clone_rl.runtime.server import ApiError, Settings
from clone_rl.runtime.server.bodies import parsed
from clone_rl.runtime.server.chat import load_renderer, plain, read_messages
from clone_rl.runtime.server.levels import service_level
from clone_rl.runtime.server.parameters import read_parameters, read_prompt
from clone_rl.runtime.server.worker import _sampling

CLASSES = [ServiceLevel("chat", 0.02, 0.003), ServiceLevel("code", 0.01, 0.001)]


def refused(call, *arguments):
    """The error of a call, which has to be one that a client is to blame for."""
    with pytest.raises(ApiError) as caught:
        call(*arguments)
    assert caught.value.status == 400
    return caught.value


def test_what_is_left_out_has_the_defaults_of_openai_or_of_this_package():
    for endpoint, longest in (("completions", 16), ("chat", None)):
        for body in ({}, {"temperature": None, "stop": None, "stream": None, "seed": None, "max_tokens": None}):
            found = read_parameters(body, endpoint)
            assert (found.max_tokens, found.temperature, found.top_k, found.seed) == (longest, None, None, None)
            assert (found.stop, found.stream, found.include_usage) == ((), False, False)


def test_what_is_given_is_taken():
    body = {"max_tokens": 5, "temperature": 1, "top_k": 3, "seed": 7, "stop": ["a", "b"], "stream": True}
    found = read_parameters({**body, "stream_options": {"include_usage": True}}, "completions")
    assert (found.max_tokens, found.temperature, found.top_k, found.seed) == (5, 1.0, 3, 7)
    assert (found.stop, found.stream, found.include_usage) == (("a", "b"), True, True)
    assert read_parameters({"max_completion_tokens": 9}, "chat").max_tokens == 9


@pytest.mark.parametrize(
    ("endpoint", "name", "value"),
    [
        ("completions", "n", 2), ("completions", "top_p", 0.9), ("completions", "presence_penalty", 0.1),
        ("completions", "frequency_penalty", -1), ("completions", "logit_bias", {"5": 1}), ("completions", "best_of", 3),
        ("completions", "echo", True), ("completions", "suffix", "end"), ("completions", "logprobs", 0),
        ("completions", "messages", []), ("completions", "max_completion_tokens", 3),
        ("chat", "logprobs", True), ("chat", "top_logprobs", 2), ("chat", "tools", [{}]), ("chat", "prompt", "x"),
        ("chat", "response_format", {"type": "json_object"}), ("chat", "store", True), ("chat", "audio", {}),
        ("chat", "reasoning_effort", "high"), ("chat", "n", True), ("chat", "top_p", True), ("chat", "toppp", 1),
    ],
)  # fmt: skip
def test_what_is_not_served_is_refused_by_name(endpoint, name, value):
    error = refused(read_parameters, {name: value}, endpoint)
    assert error.param == name
    assert name in error.message


def test_what_asks_for_nothing_is_taken_although_it_is_not_served():
    body = {"n": 1, "top_p": 1.0, "presence_penalty": 0, "logit_bias": {}, "user": "me", "metadata": {"a": "b"}}
    read_parameters({**body, "best_of": 1, "echo": False, "logprobs": None}, "completions")
    read_parameters({**body, "logprobs": False, "tools": [], "response_format": {"type": "text"}, "store": False}, "chat")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", 0), ("max_tokens", -1), ("max_tokens", 1.5), ("max_tokens", True), ("max_tokens", "5"),
        ("max_tokens", 10**30), ("temperature", -0.1), ("temperature", 2.1), ("temperature", "hot"), ("temperature", True),
        ("temperature", float("nan")), ("temperature", 10**400),
        ("temperature", float("inf")),
        ("top_k", -2), ("seed", -1), ("seed", 2**31),
        ("seed", 1.0), ("stop", ""), ("stop", ["a"] * 5), ("stop", ["a", 1]), ("stop", {}), ("stop", [""]),
        ("stream", "yes"), ("stream", 1), ("stream_options", {"include_usage": True}), ("stream_options", []),
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused_by_name(name, value):
    assert refused(read_parameters, {name: value}, "completions").param == name


@pytest.mark.parametrize("off", [0, -1])
def test_top_k_can_be_switched_off(off):
    assert _sampling(read_parameters({"top_k": off}, "completions")) == Sampling(top_k=0)


@pytest.mark.parametrize(
    ("read", "words"),
    [
        (lambda: read_parameters({"n": True}, "chat"), "n is true, which is not served (1, or"),
        (lambda: read_parameters({"logprobs": True}, "chat"), "(false, or leave it out)"),
        (lambda: read_parameters({"response_format": {"type": [None]}}, "chat"), '{"type": [null]}'),
        (lambda: read_parameters({"seed": False}, "chat"), "seed is false"),
        (lambda: read_parameters({"stop": [True, None]}, "chat"), "stop is [true, null]"),
        (lambda: read_prompt({"prompt": [None, True]}), "the prompt is [null, true]"),
        (lambda: read_prompt({}), "the prompt is missing"),
        (lambda: read_messages({"messages": [{"role": None, "content": "a"}]}), "messages[0].role is null"),
        (lambda: service_level(True, {}, CLASSES, CLASSES[0]), "slo is true"),
        (lambda: service_level({"ttft_s": False, "tpot_s": 1}, {}, CLASSES, CLASSES[0]), "slo.ttft_s is false"),
    ],
)
def test_messages_have_the_words_of_json(read, words):
    assert words in str(refused(read))


def test_two_limits_and_strange_stream_options_are_refused():
    refused(read_parameters, {"max_tokens": 1, "max_completion_tokens": 1}, "chat")
    for options in ({"include_usage": 1}, {"other": True}, {"include_obfuscation": True}):
        assert refused(read_parameters, {"stream": True, "stream_options": options}, "chat").param.startswith(
            "stream_options."
        )


def test_a_prompt_is_text_or_tokens_alone_or_in_a_list_of_one():
    assert read_prompt({"prompt": "a"}) == read_prompt({"prompt": ["a"]}) == "a"
    assert read_prompt({"prompt": [1, 2]}) == read_prompt({"prompt": [[1, 2]]}) == (1, 2)
    for prompt in (None, [], {}, 5, [1.0], [True], [1, "a"], [[]], ["a", "b"], [[1], [2]], [None]):
        assert refused(read_prompt, {"prompt": prompt}).param == "prompt"


def test_messages_are_text_of_known_roles():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "developer", "content": "s"}, {"role": "user", "content": parts, "name": "n"}]
    found = read_messages({"messages": [*messages, {"role": "assistant", "content": "c", "refusal": None}]})
    assert [(m["role"], m["content"]) for m in found] == [("system", "s"), ("user", "ab"), ("assistant", "c")]
    assert plain(found) == "s\nab\nc"
    image = [{"type": "image_url", "image_url": {"url": "http://x"}}]
    for messages in (
        None, [], "a", [1], [{}], [{"role": "tool", "content": "a"}], [{"role": "user"}], [{"role": "user", "content": 1}],
        [{"role": "user", "content": []}], [{"role": "user", "content": image}], [{"role": ["user"], "content": "a"}],
        [{"role": "assistant", "content": "a", "tool_calls": [{}]}], [{"role": "user", "content": ["a"]}],
    ):  # fmt: skip
        assert refused(read_messages, {"messages": messages}).param.startswith("messages")


def test_a_models_own_chat_template_is_used_in_a_sandbox(tmp_path):
    template = "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}"
    template += "{% if add_generation_prompt %}<assistant>{% endif %}"
    settings = {"chat_template": template, "bos_token": "<s>", "eos_token": {"content": "</s>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    messages = [{"role": "user", "content": "{{ 7 * 7 }}"}]
    assert load_renderer(tmp_path, True)(messages) == "<user>{{ 7 * 7 }}</s><assistant>"
    assert load_renderer(tmp_path, False)(messages) == "<s><user>{{ 7 * 7 }}</s><assistant>"
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    assert load_renderer(tmp_path, True)([{"role": "user", "content": "a"}]) == "a!"
    for attack in ("{{ raise_exception('no') }}", "{{ messages.__class__.__mro__ }}", "{{ messages.append(1) }}"):
        (tmp_path / "chat_template.jinja").write_text(attack)
        assert refused(load_renderer(tmp_path, True), messages).param == "messages"
    (tmp_path / "chat_template.jinja").write_text("{% for %}")
    with pytest.raises(BadFileError, match="malformed"):
        load_renderer(tmp_path, True)


def test_a_model_without_a_template_gets_the_texts_alone(tmp_path):
    assert load_renderer(tmp_path, True) is plain
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(BadFileError, match="chat template"):
        load_renderer(tmp_path, True)


def test_a_service_level_comes_from_the_body_or_the_headers_or_the_server():
    headers = {"x-slo-ttft-s": "0.5", "x-slo-tpot-s": "1e-3"}
    assert service_level(None, {}, CLASSES, CLASSES[1]) == CLASSES[1]
    assert service_level("chat", headers, CLASSES, CLASSES[1]) == CLASSES[0]
    assert service_level(None, {"x-slo-class": "chat"}, CLASSES, CLASSES[1]) == CLASSES[0]
    assert service_level(None, headers, CLASSES, CLASSES[1]) == ServiceLevel("request", 0.5, 1e-3)
    own = {"ttft_s": 1, "tpot_s": 0.25}
    assert service_level(own, {"x-slo-class": "chat"}, CLASSES, CLASSES[1]) == ServiceLevel("request", 1.0, 0.25)


@pytest.mark.parametrize(
    "wrong", [0, -1, 1e-9, 1e9, 1e300, int("1" * 400), True, "1", None, [], float("nan")], ids=lambda value: repr(value)[:9]
)
@pytest.mark.parametrize("name", ["ttft_s", "tpot_s"])
def test_absurd_targets_are_refused_by_name(name, wrong):
    assert refused(service_level, {"ttft_s": 1, "tpot_s": 1, name: wrong}, {}, CLASSES, CLASSES[0]).param == f"slo.{name}"


@pytest.mark.parametrize(
    ("given", "headers", "param"),
    [
        ("fast", {}, "slo"), (5, {}, "slo"), ([], {}, "slo"), ({"ttft_s": 1, "tpot_s": 1, "x": 1}, {}, "slo"),
        (None, {"x-slo-class": "fast"}, "X-SLO-Class"), (None, {"x-slo-class": ""}, "X-SLO-Class"),
        (None, {"x-slo-class": "chat", "x-slo-ttft-s": "1"}, "X-SLO-Class"), (None, {"x-slo-ttft-s": "1"}, "X-SLO-TPOT-S"),
        (None, {"x-slo-tpot-s": "1"}, "X-SLO-TTFT-S"), (None, {"x-slo-ttft-s": "nan", "x-slo-tpot-s": "1"}, "X-SLO-TTFT-S"),
        (None, {"x-slo-ttft-s": "1", "x-slo-tpot-s": "fast"}, "X-SLO-TPOT-S"),
    ],
)  # fmt: skip
def test_strange_service_levels_are_refused_by_name(given, headers, param):
    assert refused(service_level, given, headers, CLASSES, CLASSES[0]).param == param


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"{", b"[]", b"null", b'"text"', b"\xff\xfe", b"{'a': 1}", b'{"a": NaN}', b'{"a": -Infinity}', b"\x00",
        b'{"a":' + b"9" * 5000 + b"}", b"[" * 100_000, b'{"a":' * 100_000, b"{" * 100_000, b'{"a": 1} x',
    ],
)  # fmt: skip
def test_bodies_that_are_no_json_object_are_refused(raw):
    refused(parsed, raw)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"port": -1}, "port is -1"), ({"port": 65536}, "port is 65536"), ({"max_queue": 0}, "max_queue is 0"),
        ({"max_body_bytes": -5}, "max_body_bytes is -5"), ({"timeout_s": float("nan")}, "timeout_s is nan"),
        ({"timeout_s": float("inf")}, "timeout_s is inf"), ({"grace_s": 0.0}, "grace_s is 0"),
        ({"tokens": ("x7-y8-z",)}, "token"),
        ({"tokens": ("with a blank",)}, "token"), ({"tokens": ("schlüssel",)}, "token"),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused_without_showing_a_token(changes, words):
    with pytest.raises(BadValueError, match=words) as caught:
        Settings(**changes)
    assert not any(token in str(caught.value) for token in changes.get("tokens", ()))


def test_an_unknown_clock_is_refused():
    with pytest.raises(UnknownNameError, match=r"unknown clock 'sun'.*emulated, wall"):
        Settings(clock="sun")


def test_settings_need_neither_torch_nor_fastapi():
    code = "import clone_rl.runtime.server; print({'torch', 'transformers', 'fastapi'} & set(__import__('sys').modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
