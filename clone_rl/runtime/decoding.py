"""A controller inside ``transformers``' own ``generate``: ``model.generate(**inputs, custom_generate=controller)``.

``generate`` prepares everything as always (inputs, logits processors, stopping criteria) and then hands over the decoding:
the model runs layer by layer with a decision at every boundary, and an emulated chip, loaded with this model, keeps the
account of time and energy.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import StoppingCriteriaList, StopStringCriteria
from transformers.generation.utils import GenerateDecoderOnlyOutput

from clone_rl.agents.controller import Controller
from clone_rl.agents.fit import Place, check_fit
from clone_rl.agents.heuristics import Fixed
from clone_rl.agents.lut import LutPolicy, load_policy
from clone_rl.agents.origin import trained_scenario
from clone_rl.agents.own import accepted
from clone_rl.agents.policy import Policy, names_policy
from clone_rl.agents.registry import controller as controller_of
from clone_rl.agents.rollout import charged_scenario
from clone_rl.envs.control import load_control
from clone_rl.envs.live import LiveControl, LiveRequest, service_level
from clone_rl.envs.scenario import Scenario, ServiceLevel
from clone_rl.envs.state import ENERGY_TERMS
from clone_rl.envs.trace import TraceSet
from clone_rl.envs.world import build_emulators
from clone_rl.errors import BadValueError
from clone_rl.hw_emulator.chip import Chip
from clone_rl.hw_emulator.workload import Workload
from clone_rl.llm.live import drive, summarised
from clone_rl.llm.model_files import ModelFiles
from clone_rl.llm.probe import Probe
from clone_rl.llm.source import SteppedSource
from clone_rl.llm.stepper import Stepper
from clone_rl.runtime.controller import RuntimeController
from clone_rl.runtime.host_model import HostModel
from clone_rl.runtime.refusals import check_request
from clone_rl.runtime.shield import emulated_shield, within_limits

_FIXED = ("performance", "powersave")
"""Baselines that are made of the chip alone."""

SHIELDED = 4096
"""Longest prompt, and longest response, that a shield is made for."""


@dataclass
class ControlledOutput(GenerateDecoderOnlyOutput):  # type: ignore[misc]
    """What ``generate`` returns under control with ``return_dict_in_generate=True``.

    Attributes:
        report: As ``ControlledDecoding.report``; the other fields are those of ``GenerateDecoderOnlyOutput``.
    """

    report: dict[str, Any] | None = None


class ControlledDecoding:
    """A decoding method of ``transformers`` with a controller in its loop and an emulated chip that keeps the account.

    One request at a time: calls from several threads take turns.

    Args:
        controller: Who decides, per layer.
        host: The model.
        scenario: Chip, service levels and rules; the controller's own overheads are charged.
        slo: Service level of requests that name none; None draws one of the scenario's classes for each.
        seed: Of the draws of requests (service level, interference): the n-th has seed + n.
        measure: Compare every exit with full depth, for the agreement and dNLL of the report. That costs the time that exits
            save, and is not charged.
        shield: Overrule decisions that may cost a deadline, see ``clone_rl.envs.shield``, of prompts and responses up to the
            model's context, or ``SHIELDED`` tokens where that is longer; and exits beyond the limits on quality, see
            ``clone_rl.agents.error_budget``, where the scenario's traces are of this model.

    Attributes:
        runtime: The controller.
        scenario, emulator: The twin.
        request: The last one, with ``points`` and ``ledger``; None before the first.
        requests: How many there were.

    Raises:
        BadValueError: The controller reads an exit probe and the model has none, or it decides per token.
        CloneRLError: The model does not fit the chip, or a name is wrong.

    >>> import torch
    >>> from clone_rl.llm import load_model
    >>> lm = load_model("default")
    >>> controller = ControlledDecoding.load("default", lm)
    >>> prompt = torch.tensor([lm.encode("Question: what is 7 plus 5?")])
    >>> answer = lm.model.generate(prompt, custom_generate=controller, max_new_tokens=8, do_sample=False)
    >>> report = controller.report()
    >>> report["tokens"] == answer.shape[1] - prompt.shape[1], report["energy_per_token_j"] > 0
    (True, True)
    """

    def __init__(
        self,
        controller: Controller,
        host: HostModel,
        scenario: Scenario,
        slo: ServiceLevel | str | None = None,
        seed: int = 0,
        measure: bool = False,
        shield: bool = False,
    ) -> None:
        controller = accepted(controller)
        probe = host.probe if controller.probes else None
        if controller.probes and probe is None:
            raise BadValueError(
                f"controller {controller.name!r} reads an exit probe and {host.name} has none",
                "fit one with: clone-rl probe --model FOLDER --text FOLDER; or take one that reads none: 'performance'",
            )
        self.scenario = charged_scenario(scenario, controller)
        self._slo = None if slo is None else service_level(self.scenario, slo)
        self._stepper = host.stepper
        self._stepper.check_strategy(self.scenario.kv)
        self.emulator = build_emulators(self.scenario, host.shape, *[probe.dots] if probe else [])[0]
        points = len(self.emulator.points)
        check_fit(controller, controller.name, Place(self.emulator.chip, kind="layer"))
        guard = None
        if shield:
            longest = min(self._stepper.anatomy.context, SHIELDED)
            guard = emulated_shield(self.scenario, self.emulator, longest, longest)
            controller = within_limits(controller, self.scenario, host.sha256)
        self.runtime = RuntimeController(controller, points, shield=guard)
        self.request: LiveRequest | None = None
        self.requests = 0
        self._live = LiveControl(self.scenario, self.emulator)
        self._probe, self._seed, self._measure, self._tokenizer = probe, seed, measure, host.tokenizer
        self._lock = threading.Lock()

    @classmethod
    def load(
        cls,
        name: str | Path | Controller | Callable[..., Any],
        model: Any,
        *,
        scenario: str | Scenario | None = None,
        chip: str | Path | Chip | None = None,
        probe: Probe | Path | str | bool | None = None,
        workload: Workload | None = None,
        precision: str = "",
        strict: bool = True,
        slo: ServiceLevel | str | None = None,
        seed: int = 0,
        measure: bool = False,
        shield: bool = False,
        tokenizer: Any = None,
    ) -> ControlledDecoding:
        """A controller by name, attached to a model.

        Args:
            name: Whatever ``clone-rl generate --controller`` takes: a baseline, with its tuned settings, a shipped policy, a
                policy file or run folder, or code of one's own, see ``clone_rl.agents.registry.controller``; or a controller.
            model, probe, workload, precision: See ``HostModel.of``.
            scenario: Chip, service levels and rules; None takes the one that the policy was trained on, as its card has it.
            chip: Name, file or ``Chip`` in the place of the scenario's.
            strict: Refuse a policy that was trained on another scenario or model. Its decisions are about fractions of depth
                and time, so it can be tried on others.
            slo, seed, measure, shield: See the class.
            tokenizer: Of a model of ``transformers``, for ``stop_strings``; others bring theirs.

        Raises:
            UnknownNameError: Nothing has this name.
            PolicyFileError: The policy is damaged.
            MisfitError: It was made for another number of operating points, or ``strict`` and trained on another scenario or
                model. Known before a model given by name is loaded.
            CloneRLError: As the class and ``HostModel.of``.
        """
        name = str(name) if isinstance(name, Path) else name
        known = load_policy(name) if isinstance(name, str) and names_policy(name) else name
        card: Mapping[str, Any] = known.card if isinstance(known, Policy | LutPolicy) else {}
        where = trained_scenario(card) or "default" if scenario is None else scenario
        chosen = Scenario.load(where, **({} if chip is None else {"chip": chip if isinstance(chip, Chip) else str(chip)}))
        found = _controller(known, chosen)
        place = Place(chosen.load_chip(), kind="layer", scenario=chosen)
        check = partial(check_fit, found, str(getattr(name, "name", name)), anyway="strict=False", strict=strict)
        if isinstance(model, str | Path):  # what its files say is known before they are loaded
            files = ModelFiles.of(model)
            check(replace(place, model=repr(files.name), sha256=files.sha256 or None))
        host = HostModel.of(model, probe, workload, precision)
        check(replace(place, model=host.name, sha256=host.sha256))
        host = host if tokenizer is None else replace(host, tokenizer=tokenizer)
        return cls(found, host, chosen, slo, seed, measure, shield)

    def __call__(
        self,
        model: Any,
        input_ids: torch.Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        streamer: Any = None,
        slo: ServiceLevel | str | None = None,
        waited_s: float = 0.0,
        stop_strings: str | Sequence[str] | None = None,
        **model_kwargs: Any,
    ) -> torch.Tensor | ControlledOutput:
        """Decode one response; ``generate`` calls this, and takes ``slo``, ``waited_s`` and ``stop_strings`` for it.

        Args:
            model, input_ids, logits_processor, stopping_criteria, generation_config, **model_kwargs: As ``generate`` passes
                them to what ``custom_generate`` names.
            streamer: Gets each token. ``generate`` keeps it to itself, so it is looked up there where none is given.
            slo: Service level of this request; None takes the controller's.
            waited_s: How long it has waited already; see ``clone_rl.envs.live.LiveRequest``.
            stop_strings: Any of these ends the response; read with the tokenizer of the model, as ``generate`` keeps its own.

        Raises:
            BadValueError: Something that cannot be served: another model, more than one sequence, padding, beams, and so on.
            UnknownNameError: The scenario has no such service level.
        """
        streamer = streamer if streamer is not None else _argument_of_generate("streamer")
        try:
            if model is not self._stepper.model:
                raise BadValueError(f"the controller is attached to another {type(model).__name__}", "load one for this model")
            asked = {**model_kwargs, "assistant_model": _argument_of_generate("assistant_model")}
            check_request(self._stepper.anatomy, input_ids, generation_config, asked)
            if stop_strings:
                stopping_criteria = StoppingCriteriaList([*stopping_criteria, self._stopping(stop_strings)])
            choice = _Choice(input_ids, logits_processor, stopping_criteria, generation_config, streamer)
            with self._lock:
                cache = self._decode(choice, self._slo if slo is None else slo, waited_s)
                report = self.report()
        finally:
            if streamer is not None:
                streamer.end()
        if not generation_config.return_dict_in_generate:
            return choice.ids
        return ControlledOutput(
            sequences=choice.ids, scores=choice.scores, logits=choice.logits, past_key_values=cache, report=report
        )

    def _decode(self, choice: _Choice, slo: ServiceLevel | str | None, waited_s: float) -> Any:
        """Answer a request; gives the cache that it leaves."""
        scenario = self.scenario
        source = _GenerateSource(self._stepper, self._probe, scenario.kv, self._measure, bool(scenario.signals), choice)
        seed, self.requests = self._seed + self.requests, self.requests + 1
        self.request = request = LiveRequest(self._live, source, seed=seed, slo=slo, waited_s=waited_s)
        self._asked = self.runtime.begin(str(self.requests), request.slo, request.prompt_tokens, choice.longest, waited_s)
        try:
            drive(request, self._asked)
        finally:
            self._stepper.detach()
        return source.cache

    def _stopping(self, strings: str | Sequence[str]) -> StopStringCriteria:
        if self._tokenizer is None:
            raise BadValueError(
                "stop_strings for a model whose tokenizer is not known",
                "give it: ControlledDecoding.load(..., tokenizer=...)",
            )
        return StopStringCriteria(self._tokenizer, strings if isinstance(strings, str) else list(strings))

    def report(self) -> dict[str, Any]:
        """What the last request took on the emulated chip: the figures of ``clone_rl.llm.live.summarised``, and more.

        Also ``prompt_tokens``, ``energy_terms_j`` (the parts of ``energy_j``), the ``targets`` in force, and ``controller``
        (what ``RuntimeRequest.report`` counts).

        Raises:
            BadValueError: There was none.
        """
        if self.request is None:
            raise BadValueError("no request yet", "call generate first")
        request, figures = self.request, self.request.figures()
        return {
            **summarised(figures, request.slo.name, request.waited_s),
            "targets": request.targets,
            "prompt_tokens": request.prompt_tokens,
            "energy_terms_j": {name.removesuffix("_j"): figures[name] for name in ENERGY_TERMS},
            "controller": self._asked.report(),
        }


class _Choice:
    """How ``generate`` chooses tokens: its processors, its sampling, its stopping criteria, its streamer.

    Attributes:
        ids: (1, tokens) prompt and response so far.
        scores, logits: Of each token, where the configuration asks for them.
    """

    def __init__(self, ids: torch.Tensor, processors: Any, criteria: Any, config: Any, streamer: Any) -> None:
        self.ids, self.longest = ids, int(config.max_length - ids.shape[1])
        self._processors, self._criteria, self._streamer = processors, criteria, streamer
        self._samples = bool(config.do_sample)
        wanted = bool(config.return_dict_in_generate)
        self.scores: tuple[torch.Tensor, ...] | None = () if wanted and config.output_scores else None
        self.logits: tuple[torch.Tensor, ...] | None = () if wanted and config.output_logits else None

    def pick(self, logits: torch.Tensor) -> tuple[int, bool]:
        """The next token from logits (vocabulary,), and whether it is the last."""
        raw = logits[None].to(self.ids.device, copy=True)
        scores = self._processors(self.ids, raw)
        if self.scores is not None:
            self.scores += (scores,)
        if self.logits is not None:
            self.logits += (raw,)
        token = torch.multinomial(scores.softmax(-1), 1)[:, 0] if self._samples else scores.argmax(-1)
        self.ids = torch.cat([self.ids, token[:, None]], 1)
        if self._streamer is not None:
            self._streamer.put(token.cpu())
        return int(token), bool(self._criteria(self.ids, self.scores).all())


class _GenerateSource(SteppedSource):
    """A model that answers as ``generate`` would have it."""

    def __init__(self, stepper: Stepper, probe: Probe | None, kv: str, reference: bool, extras: bool, choice: _Choice) -> None:
        super().__init__(stepper, probe, kv, reference, extras)
        self._choice = choice

    def __len__(self) -> int:
        return 1

    def start(self, document: int, seed: int) -> TraceSet:  # noqa: ARG002
        """Begin the request; see ``TokenSource``."""
        return self.begin(self._choice.ids[0].tolist(), self._choice.longest)

    def choose(self, logits: torch.Tensor) -> int:
        """As ``generate`` does."""
        token, self.ended = self._choice.pick(logits)
        return token


def _argument_of_generate(name: str) -> Any:
    """An argument that ``generate`` does not hand on to what ``custom_generate`` names: it is read off its frame."""
    frame: Any = sys._getframe(2)
    return frame.f_locals.get(name) if frame.f_code.co_name == "generate" else None


def _controller(known: Any, scenario: Scenario) -> Controller:
    """A controller that is one already, or that a name, a class or a function stands for in a scenario."""
    if not isinstance(known, str | type) and hasattr(known, "act"):
        return accepted(known)
    if known in _FIXED:  # without the traces, which may be of another model, or not there
        return Fixed(known, 0 if known == "powersave" else len(scenario.load_chip().operating_points) - 1)
    return controller_of(known, load_control("layer", scenario))
