"""The model in the loop as a Gymnasium environment that text alone describes. Torch is imported when one is made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clone_rl.envs.keywords import check_keywords
from clone_rl.envs.live import LiveLayerControlEnv
from clone_rl.envs.reward import Cost, Reward
from clone_rl.envs.scenario import Scenario
from clone_rl.errors import BadValueError, MissingExtraError, UnknownNameError
from clone_rl.llm.prompt_file import read_prompts
from clone_rl.llm.prompts import Prompt, make_prompts

if TYPE_CHECKING:
    from clone_rl.llm.source import ModelSource

_PER_KIND = {"train": 250, "validation": 50, "test": 50}
"""Shipped prompts of each kind, those that the shipped traces were recorded from."""


class ModelLayerControlEnv(LiveLayerControlEnv):
    """Choose V/f for every decoder layer of every token of a language model that answers while it is controlled.

    Registered as ``clone_rl/LiveLayerControl-v0``. A replay shows each exit as recorded, with exact keys and values; here an
    exit decides which token is emitted, and what the caches of the skipped layers hold then changes what later tokens see.

    ### Action space, observation space, reward
    As in ``clone_rl.envs.single.LayerControlEnv``. Disagreement, dNLL and KL compare the exit that was taken with the rest of
    the layers run on the same state; that reference is not charged. The predicted length of a response is the longest one.

    ### Starting state
    One of the prompts, drawn or asked for with ``reset(options={"document": d})``; a class of service, a slack and the
    co-runner's state as in a replay. The seed is also that of the sampling: the same seed and the same actions give the same
    tokens, and each episode of a seed samples anew.

    ### Episode end
    ``terminated`` when the model ends its response, or after ``max_new_tokens``; ``truncated`` only by a time limit. The last
    info is that of a replay; ``figures["document"]`` is the number of the prompt. ``env.unwrapped.source.tokens`` has the
    response.

    ### Arguments
    ``scenario`` (name, TOML path or plain data; its ``traces`` are not read), ``model`` (``"default"``, the embedded one, or
    a model folder; it takes the place of the scenario's ``model``), ``precision`` (what a Hugging Face folder is rounded to
    and charged at; empty for the emulator's default), ``prompts`` (a list of texts, the path of a file as ``clone-rl
    generate --prompt-file`` takes it, or None for the shipped ones, which no model of the package was trained on), ``split``
    (which of the shipped prompts, or of a file's that name one: train, validation, test), ``max_new_tokens``,
    ``temperature`` and ``top_k`` (of the sampling; temperature 0 is greedy), ``reward``, ``cost``, ``render_mode`` and any
    other field of ``clone_rl.envs.scenario.Scenario``, such as ``kv="exact"``. All of them can be written as JSON.

    ### Errors
    ``MissingExtraError`` without torch and transformers; other ``CloneRLError``s name what is wrong with an argument.

    ### Version history
    v0: first version.

    >>> import gymnasium as gym, clone_rl
    >>> env = gym.make("clone_rl/LiveLayerControl-v0", prompts=["Once upon a time there was"], max_new_tokens=2)
    >>> observation, info = env.reset(seed=0)
    >>> for layer in range(10):  # the prompt, at full depth
    ...     observation, reward, terminated, truncated, info = env.step(7)
    >>> len(env.unwrapped.source.tokens), terminated
    (1, False)
    """

    def __init__(
        self,
        scenario: str | dict[str, Any] | Scenario = "default",
        model: str = "default",
        prompts: str | Sequence[str] | None = None,
        split: str = "train",
        max_new_tokens: int = 80,
        temperature: float = 0.8,
        top_k: int | None = 40,
        precision: str = "",
        reward: str | Reward | None = None,
        cost: str | Cost | None = None,
        render_mode: str | None = None,
        **changes: Any,
    ) -> None:
        check_keywords(type(self), changes)
        loaded = Scenario.load(scenario, **changes)
        source = _source(loaded.kv, model, precision, _prompts(prompts, split), max_new_tokens, temperature, top_k)
        super().__init__(source, source.lm.shape, loaded, reward, cost, render_mode)


def _prompts(given: str | Sequence[str] | None, split: str) -> list[Prompt]:
    """What there is to answer.

    Raises:
        CloneRLError: An unknown split, a file that holds no prompts of it, or what is no text.
    """
    if split not in _PER_KIND:
        raise UnknownNameError("split", split, _PER_KIND)
    if given is None:
        return make_prompts(split, _PER_KIND[split])
    if isinstance(given, str):
        chosen = [prompt for prompt in read_prompts(Path(given)) if prompt.split in ("", split)]
        if not chosen:
            raise BadValueError(f"{given} has no {split} prompts", "choose a split that it names, or leave 'split' out of it")
        return chosen
    if not isinstance(given, Sequence) or not given or not all(isinstance(text, str) for text in given):
        raise BadValueError(f"prompts is {given!r}", "a list of texts, the path of a file, or None for the shipped ones")
    return [Prompt("user", text, "", number) for number, text in enumerate(given)]


def _source(
    kv: str, model: str, precision: str, prompts: list[Prompt], max_new_tokens: int, temperature: float, top_k: int | None
) -> ModelSource:
    """The model, ready to answer the prompts.

    Raises:
        MissingExtraError: Torch or transformers is not installed.
        CloneRLError: Another argument is wrong.
    """
    try:
        from clone_rl.llm.documents import Responses, prompt_documents
        from clone_rl.llm.model import load_model
        from clone_rl.llm.sampling import Sampling
        from clone_rl.llm.source import ModelSource
    except ModuleNotFoundError as error:
        if error.name and error.name.startswith("clone_rl"):
            raise
        raise MissingExtraError(f"a model in the loop needs {error.name}", "pip install 'clone-rl[llm]'") from None
    sampling, lm = Sampling(temperature, top_k), load_model(model, precision)
    free = Responses("free-running", max_new_tokens, sampling)
    documents = prompt_documents(lm, [("test", prompt) for prompt in prompts], free)
    return ModelSource(lm, documents, kv, max_new_tokens, sampling)
