"""``transformers``' text-generation pipeline with a controller in the loop: text in, text and its energy report out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TextGenerationPipeline

from clone_rl.agents.controller import Controller
from clone_rl.errors import BadValueError, UnknownNameError
from clone_rl.llm.anatomy import plain_model
from clone_rl.llm.model import LanguageModel, load_model
from clone_rl.runtime.decoding import ControlledDecoding

TASK = "text-generation"

MAX_NEW_TOKENS = 60
"""Longest response unless a call says otherwise, as of ``clone_rl.llm.live.LiveSession.generate``."""


class ControlledTextGeneration(TextGenerationPipeline):  # type: ignore[misc]
    """A ``transformers.TextGenerationPipeline`` whose every result has a ``report`` beside its ``generated_text``.

    Calls take what those of that class take, and what ``generate`` takes under control: ``slo`` and ``waited_s``.

    Args:
        controller: Attached to the model.
        **options: As of ``TextGenerationPipeline``.
    """

    def __init__(self, controller: ControlledDecoding, **options: Any) -> None:
        self.controller = controller
        super().__init__(**options)

    def _forward(self, model_inputs: Any, **generate_kwargs: Any) -> Any:
        outputs = super()._forward(model_inputs, custom_generate=self.controller, **generate_kwargs)
        return {**outputs, "report": self.controller.report()}

    def postprocess(self, model_outputs: Any, *args: Any, **options: Any) -> Any:
        """Text as the class has it, and the report."""
        report = model_outputs.pop("report")
        return [{**record, "report": report} for record in super().postprocess(model_outputs, *args, **options)]


def pipeline(
    task: str = TASK,
    model: Any = "default",
    controller: str | Path | Controller | Callable[..., Any] = "default",
    tokenizer: Any = None,
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
    **options: Any,
) -> ControlledTextGeneration:
    """Text generation under control, as ``transformers.pipeline`` has it.

    Args:
        task: ``text-generation``.
        model: ``default``, a model folder, a ``LanguageModel``, or a model of ``transformers``.
        controller: As ``ControlledDecoding.load`` takes it.
        tokenizer: The model's; needed where it is one of ``transformers``.
        max_new_tokens: Longest response unless a call says otherwise.
        **options: Of ``ControlledDecoding.load``, such as ``scenario``, ``chip``, ``probe``, ``slo`` and ``strict``.

    Raises:
        UnknownNameError: Another task, or something has not this name.
        BadValueError: No tokenizer.
        CloneRLError: As ``ControlledDecoding.load``.

    >>> generator = pipeline("text-generation", model="default", controller="default")
    >>> answer = generator("Question: what is 7 plus 5?", max_new_tokens=8)[0]
    >>> answer["report"]["tokens"] <= 8, answer["report"]["energy_j"] > 0
    (True, True)
    """
    if task != TASK:
        raise UnknownNameError("task", task, [TASK])
    attached = ControlledDecoding.load(
        controller, model, tokenizer=tokenizer, **options
    )  # refuses what does not fit before it loads
    if isinstance(model, str | Path):
        model = load_model(str(model), options.get("precision", ""))  # the same one, which is not read again
    ends: dict[str, Any] = {}
    if isinstance(model, LanguageModel):
        tokenizer = tokenizer or model.hf_tokenizer
        ends = {"eos_token_id": sorted(model.end_ids) or None, "pad_token_id": min(model.end_ids, default=0)}
    elif tokenizer is None:
        raise BadValueError(f"no tokenizer for a {type(model).__name__}", "give tokenizer=..., or the folder of the model")
    network = plain_model(model)
    return ControlledTextGeneration(
        attached, model=network, tokenizer=tokenizer, device=network.device, max_new_tokens=max_new_tokens, **ends
    )
