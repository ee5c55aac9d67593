"""Messages of a chat as the text that a model continues: by the model's own template, where it has one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from clone_rl.errors import BadFileError
from clone_rl.runtime.server.failures import ApiError, shown

_ROLES = ("system", "developer", "user", "assistant")
_HARMLESS = {"name", "refusal", "annotations"}
"""Fields of a message that clients send back as they got them; only an empty one says nothing, but for the name."""

Render = Callable[[Sequence[Mapping[str, str]]], str]
"""From messages with role and content to a prompt."""


def read_messages(body: Mapping[str, Any]) -> list[dict[str, str]]:
    """The messages of a chat, each with ``role`` and ``content`` as text.

    Raises:
        ApiError: They are missing, of an unknown role, or hold anything but text.
    """
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise ApiError(400, "messages is no list, or an empty one", "at least one message with role and content", "messages")
    return [_message(message, f"messages[{at}]") for at, message in enumerate(messages)]


def _message(message: Any, param: str) -> dict[str, str]:
    if not isinstance(message, dict):
        raise ApiError(400, f"{param} is no object", "role and content", param)
    if (role := message.get("role")) not in _ROLES:
        raise ApiError(400, f"{param}.role is {shown(role)}", f"one of {', '.join(_ROLES)}", f"{param}.role")
    for name, value in message.items():
        if name not in ("role", "content") and (name not in _HARMLESS or (name != "name" and value)) and value is not None:
            raise ApiError(400, f"{param}.{name!s:.80} is not served", "messages of text", param)
    role = "system" if role == "developer" else role  # one word for it in templates
    return {"role": role, "content": _content(message.get("content"), f"{param}.content")}


def _content(content: Any, param: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise ApiError(400, f"{param} is no text", "a text, or parts of type 'text'", param)
    texts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content]
    if not all(isinstance(text, str) for text in texts):
        raise ApiError(400, f"{param} holds a part that is no text", "parts of type 'text'", param)
    return "".join(texts)  # type: ignore[arg-type]


def plain(messages: Sequence[Mapping[str, str]]) -> str:
    r"""The contents, each on lines of its own: for models that know no roles.

    >>> plain([{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "Answer:"}])
    '2 + 2?\nAnswer:'
    """
    return "\n".join(message["content"] for message in messages)


def load_renderer(folder: Path, starts: bool) -> Render:
    """What makes prompts for the model in a folder: its chat template in a sandbox, ``plain`` where it has none.

    Args:
        folder: Of the model.
        starts: Whether the tokenizer puts its start token before every text anyway: then the template's own is left out.

    Raises:
        BadFileError: The template or the tokenizer's configuration cannot be read.
    """
    try:
        settings_file, template_file = folder / "tokenizer_config.json", folder / "chat_template.jinja"
        settings = json.loads(settings_file.read_text(encoding="utf-8")) if settings_file.is_file() else {}
        template = template_file.read_text(encoding="utf-8") if template_file.is_file() else settings.get("chat_template")
    except (OSError, ValueError) as error:
        raise BadFileError(f"{folder}: its chat template cannot be read: {error}") from None
    if isinstance(template, list):  # several by name
        template = next((one.get("template") for one in template if one.get("name") == "default"), None)
    return _templated(template, settings, folder, starts) if isinstance(template, str) else plain


def _templated(template: str, settings: Mapping[str, Any], folder: Path, starts: bool) -> Render:
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    environment.globals["raise_exception"] = refuse
    try:
        ready = environment.from_string(template)
    except TemplateError as error:
        raise BadFileError(f"{folder}: its chat template is malformed: {error}") from None
    tokens = {name: _token(settings.get(name)) for name in ("bos_token", "eos_token")}
    if starts:
        tokens["bos_token"] = ""

    def render(messages: Sequence[Mapping[str, str]]) -> str:
        try:
            return ready.render(messages=list(messages), add_generation_prompt=True, **tokens)
        except (TemplateError, TypeError, ValueError) as error:
            raise ApiError(400, f"the model's chat template refuses the messages: {error}", param="messages") from None

    return render


def _token(value: Any) -> str:
    """A special token of a tokenizer's configuration, which may be an object or absent."""
    return str(value.get("content", "")) if isinstance(value, dict) else value or ""
