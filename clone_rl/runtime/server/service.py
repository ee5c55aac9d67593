"""A model that is served: names, service levels, and requests made of what clients send."""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clone_rl.agents.fit import ANY_MODEL, Place, check_fit
from clone_rl.envs import live
from clone_rl.errors import CloneRLError, UnknownNameError
from clone_rl.runtime.server.chat import Render, plain, read_messages
from clone_rl.runtime.server.failures import ApiError
from clone_rl.runtime.server.job import Job
from clone_rl.runtime.server.levels import service_level
from clone_rl.runtime.server.parameters import read_parameters, read_prompt
from clone_rl.runtime.server.settings import Settings
from clone_rl.runtime.server.worker import Worker

if TYPE_CHECKING:
    from clone_rl.llm.live import LiveSession

_PREFIXES = {"completions": "cmpl", "chat": "chatcmpl"}
_LARGEST_SEED = 2**31 - 1


def check_controller(controller: Any, name: str, session: LiveSession, any_model: bool = False) -> None:
    """Refuse a controller that was made for another model or chip.

    Args:
        controller: A ``RuntimeController``, or anything with ``points`` and, if it was trained, a ``card``.
        name: As it was asked for.
        session: The model in its scenario.
        any_model: Whether it may have been trained on another model.

    Raises:
        MisfitError: It was trained on another model, or decides between other operating points.
    """
    place = Place(session.emulator.chip, repr(session.lm.name), session.lm.sha256)
    check_fit(controller, name, place)
    if (inner := getattr(controller, "controller", None)) is not None:
        check_fit(inner, name, place, ANY_MODEL, strict=not any_model)


class Service:
    """A model, a controller and a scenario behind names that clients use.

    Args:
        session: The model in its scenario.
        controller: Who decides.
        controller_name: As it was asked for.
        settings: How to serve.
        render: What makes a prompt of the messages of a chat.

    Attributes:
        model: The one name that clients may ask for: ``default``, or that of the model's folder.
        worker: What answers.

    Raises:
        MisfitError: The controller was made for another model or chip.
        UnknownNameError: The settings name a service level that the scenario does not have.
    """

    def __init__(
        self, session: LiveSession, controller: Any, controller_name: str, settings: Settings, render: Render = plain
    ) -> None:
        check_controller(controller, controller_name, session, settings.any_model)
        self.session, self.settings, self.controller_name = session, settings, controller_name
        self.model = Path(session.lm.name).resolve().name
        self._default = live.service_level(session.scenario, settings.slo) if settings.slo else session.scenario.slo[0]
        self._render, self._seeds = render, itertools.count()
        self.worker = Worker(session, controller, controller_name, settings)

    async def job(self, body: Mapping[str, Any], headers: Mapping[str, str], endpoint: str, client: str) -> Job:
        """A request, checked and tokenised.

        Raises:
            ApiError: Something about it is wrong.
        """
        self.check_model(body.get("model"))
        parameters = read_parameters(body, endpoint)
        level = service_level(body.get("slo"), headers, self.session.scenario.slo, self._default)
        given = read_messages(body) if endpoint == "chat" else read_prompt(body)
        # A long text takes a while, in which the loop serves others.
        prompt = await asyncio.to_thread(self._encoded, given)
        number = next(self._seeds) & _LARGEST_SEED
        seed = number if parameters.seed is None else parameters.seed
        return Job(f"{_PREFIXES[endpoint]}-{uuid.uuid4().hex}", endpoint, client, prompt, parameters, level, seed)

    def check_model(self, name: Any) -> None:
        """Refuse every name but that of the model that is served.

        Raises:
            ApiError: Another one, or none.
        """
        if not isinstance(name, str):
            raise ApiError(400, "model is missing, or no text", f"this server has {self.model!r}", "model")
        if name != self.model:
            error = UnknownNameError("model", f"{name:.80}", [self.model])
            raise ApiError(404, error.message, error.hint, "model", "model_not_found")

    def _encoded(self, given: Any) -> list[int]:
        """Tokens of messages, of a text, or of a prompt that is tokens already."""
        if isinstance(given, tuple):
            return list(given)
        param = "prompt" if isinstance(given, str) else "messages"
        try:
            return self.session.lm.encode_prompt(given if isinstance(given, str) else self._render(given))
        except CloneRLError as error:
            raise ApiError.of(error, param) from None

    def models(self) -> dict[str, Any]:
        """The list of models, in OpenAI's shape."""
        return {"object": "list", "data": [self.model_card()]}

    def model_card(self) -> dict[str, Any]:
        """The one model, in OpenAI's shape."""
        shape, owner = self.session.lm.shape, "clone-rl"
        return {"id": self.model, "object": "model", "created": 0, "owned_by": owner, "max_model_len": shape.context}

    def state(self) -> dict[str, Any]:
        """What the live page shows."""
        points = self.session.emulator.points
        return {
            "model": self.model,
            "controller": self.controller_name,
            "chip": self.session.emulator.chip.name,
            "clock": self.settings.clock,
            "layers": self.session.lm.shape.layers,
            "voltages_v": [float(voltage) for voltage in points["voltage_v"]],
            "waiting": self.worker.waiting,
            "running": self.worker.running,
            "max_queue": self.settings.max_queue,
            **self.worker.account.snapshot(),
        }
