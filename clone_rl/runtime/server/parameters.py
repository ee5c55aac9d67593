"""Parameters of the OpenAI API that are served here; every other one is refused by name, unless it says what holds anyway."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from clone_rl.errors import UnknownNameError
from clone_rl.runtime.server.failures import ApiError, shown

_COMMON_DEFAULTS: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "top_p": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
}
_DEFAULTS: dict[str, dict[str, tuple[Any, ...]]] = {
    "completions": {**_COMMON_DEFAULTS, "best_of": (1,), "echo": (False,), "suffix": ("",), "logprobs": ()},
    "chat": {
        **_COMMON_DEFAULTS,
        "logprobs": (False,),
        "top_logprobs": (0,),
        "tools": ([],),
        "tool_choice": ("none", "auto"),
        "parallel_tool_calls": (True, False),
        "functions": ([],),
        "function_call": ("none", "auto"),
        "response_format": ({"type": "text"},),
        "modalities": (["text"],),
        "audio": (),
        "prediction": (),
        "reasoning_effort": ("none",),
        "service_tier": ("auto", "default"),
        "store": (False,),
        "verbosity": (),
        "web_search_options": (),
    },
}
"""What is not served, and the values of it that ask for nothing; null always does."""

_NOTES = {"user", "metadata", "safety_identifier", "prompt_cache_key"}
"""Says nothing about the answer."""

_SERVED = {"model", "max_tokens", "temperature", "top_k", "seed", "stop", "stream", "stream_options", "slo"}
_OWN = {"completions": {"prompt"}, "chat": {"messages", "max_completion_tokens"}}

_COMPLETION_TOKENS = 16  # OpenAI's default
_MOST_STOPS = 4
_MOST_TOKENS = 2**31 - 1
_LARGEST_SEED = 2**31 - 1


@dataclass(frozen=True)
class Parameters:
    """What a request asks for besides its prompt and its service level.

    Attributes:
        max_tokens: Longest response; None is what the context holds.
        temperature, top_k, seed: As of ``clone_rl.llm.sampling.Sampling``; None is the default.
        stop: Strings that end the response.
        stream: Whether tokens are sent as they come.
        include_usage: Whether a stream ends with a count of tokens.
    """

    max_tokens: int | None
    temperature: float | None
    top_k: int | None
    seed: int | None
    stop: tuple[str, ...]
    stream: bool
    include_usage: bool


def read_parameters(body: Mapping[str, Any], endpoint: str) -> Parameters:
    """The parameters of a request.

    Args:
        body: As parsed.
        endpoint: ``completions`` or ``chat``.

    Raises:
        ApiError: A parameter is unknown, not served, or out of range.
    """
    _check_names(body, endpoint)
    stream = _flag(body, "stream")
    longest = _integer(body, "max_tokens", 1, _MOST_TOKENS)
    if (other := _integer(body, "max_completion_tokens", 1, _MOST_TOKENS)) is not None:
        if longest is not None:
            raise ApiError(400, "max_tokens and max_completion_tokens", "send one of them", "max_completion_tokens")
        longest = other
    if longest is None and endpoint == "completions":
        longest = _COMPLETION_TOKENS
    return Parameters(
        max_tokens=longest,
        temperature=_real(body, "temperature", 0.0, 2.0),
        top_k=_integer(body, "top_k", -1, _MOST_TOKENS),
        seed=_integer(body, "seed", 0, _LARGEST_SEED),
        stop=_stops(body.get("stop")),
        stream=stream,
        include_usage=_include_usage(body.get("stream_options"), stream),
    )


def read_prompt(body: Mapping[str, Any]) -> str | tuple[int, ...]:
    """The prompt of a completion: text or tokens, alone or as the one element of a list.

    Raises:
        ApiError: It is missing, of another type, or there are several.
    """
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, list) and prompt and all(type(token) is int for token in prompt):
        return tuple(prompt)
    if isinstance(prompt, list) and len(prompt) > 1 and all(isinstance(one, str | list) for one in prompt):
        raise ApiError(400, f"{len(prompt)} prompts", "one prompt a request: the chip serves a batch of one", "prompt")
    found = "missing" if prompt is None else shown(prompt)
    raise ApiError(400, f"the prompt is {found}", "text, or a list of token ids", "prompt")


def _check_names(body: Mapping[str, Any], endpoint: str) -> None:
    defaults = _DEFAULTS[endpoint]
    known = _SERVED | _OWN[endpoint] | _NOTES
    for name, value in body.items():
        if name in known or value is None:
            continue
        if name not in defaults:
            raise ApiError.of(UnknownNameError("parameter", name, known | defaults.keys()), name)
        if not any(value == default and isinstance(value, bool) == isinstance(default, bool) for default in defaults[name]):
            served = " or ".join(shown(default) for default in defaults[name]) or "null"
            raise ApiError(400, f"{name} is {shown(value)}, which is not served", f"{served}, or leave it out", name)


def _flag(values: Mapping[str, Any], name: str, param: str = "") -> bool:
    value = values.get(name)
    if value is not None and not isinstance(value, bool):
        raise ApiError(400, f"{param or name} is {shown(value)}", "true or false", param or name)
    return bool(value)


def _integer(body: Mapping[str, Any], name: str, low: int, high: int) -> int | None:
    value = body.get(name)
    if value is not None and (type(value) is not int or not low <= value <= high):
        raise ApiError(400, f"{name} is {shown(value)}", f"an integer, {low} to {high}", name)
    return value


def _real(body: Mapping[str, Any], name: str, low: float, high: float) -> float | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ApiError(400, f"{name} is {shown(value)}", f"a number, {low:g} to {high:g}", name)
    return float(value)


def _stops(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else [] if value is None else value
    right = isinstance(stops, list) and len(stops) <= _MOST_STOPS and all(isinstance(s, str) and s for s in stops)
    if not right:
        raise ApiError(400, f"stop is {shown(value)}", f"a text, or at most {_MOST_STOPS} of them, none empty", "stop")
    return tuple(stops)


def _include_usage(options: Any, stream: bool) -> bool:
    if options is None:
        return False
    if not isinstance(options, dict):
        raise ApiError(400, f"stream_options is {shown(options)}", "an object", "stream_options")
    if not stream:
        raise ApiError(400, "stream_options without stream", "set stream to true", "stream_options")
    for name, value in options.items():  # padding against traffic analysis is nothing that loopback needs
        if name not in ("include_usage", "include_obfuscation") or (name == "include_obfuscation" and value):
            raise ApiError(400, f"stream_options.{name} is not served", "include_usage is", f"stream_options.{name}")
    return _flag(options, "include_usage", "stream_options.include_usage")
