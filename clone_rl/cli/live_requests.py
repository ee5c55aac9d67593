"""The model in the loop on the documents of a trace set: prompts found again by their keys."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clone_rl.envs.control import Control
from clone_rl.envs.trace import SPLITS
from clone_rl.errors import BadFileError, BadValueError
from clone_rl.evaluation.live import LiveRunner

if TYPE_CHECKING:
    from clone_rl.llm.documents import Document, Responses
    from clone_rl.llm.model import LanguageModel
    from clone_rl.llm.source import ModelSource


@dataclass(frozen=True)
class LiveRequests:
    """A model that is ready to answer.

    Attributes:
        runner: Runs controllers on it.
        settings: Model and sampling, as rows keep them.
        source: What the runner runs on.
    """

    runner: LiveRunner
    settings: dict[str, Any]
    source: ModelSource

    def close(self) -> None:
        """Let go of the model."""
        self.source.close()


def live_requests(options: Any, control: Control, documents: NDArray[np.int64]) -> LiveRequests:
    """A model for the documents of a trace set.

    Args:
        options: With ``model``, ``responses``, ``prompt_file`` and ``max_new_tokens``, as of ``clone-rl evaluate``.
        control: The scenario.
        documents: Of its trace set.

    Raises:
        BadValueError: The model is not the one that the traces are of.
        BadFileError: A prompt of the trace set cannot be found.
    """
    from clone_rl.llm.documents import Responses, answered
    from clone_rl.llm.model import load_model
    from clone_rl.llm.model_files import ModelFiles
    from clone_rl.llm.sampling import Sampling
    from clone_rl.llm.source import ModelSource

    card = control.traces.card
    if not {"model_sha256", "keys", "sampling", "max_new_tokens"} <= card.keys():
        raise BadFileError(f"{control.scenario.traces}: its card names no model", "record the set with clone-rl record")
    files = ModelFiles.of(options.model or str(card["model"]))
    if files.sha256 and files.sha256 != card["model_sha256"]:  # told before it is loaded
        raise BadValueError(
            f"model {files.name!r} is not the one that traces {control.scenario.traces!r} were recorded from",
            f"sha256 {files.sha256[:12]}, not {str(card['model_sha256'])[:12]}; give it: clone-rl evaluate --live --model",
        )
    lm = load_model(files.name)
    most = options.max_new_tokens or int(card["max_new_tokens"])
    sampling = Sampling(**card["sampling"])
    responses = Responses(str(card["mode"]) if card["mode"] != "mixed" else "auto", most, sampling)
    wanted = np.unique(documents)
    found = _found(lm, control, wanted, responses, options.prompt_file)
    if options.responses == "own":
        asked = [replace(d, ids=d.ids[: d.prompt_tokens], sampled=True) for d in found]
    else:
        asked = [answered(lm, d, responses) for d in found]
    means = control.traces.mean_tokens()
    expected = {kind: float(means[k]) for k, kind in enumerate(control.traces.kinds)}
    source = ModelSource(lm, asked, control.scenario.kv, most, sampling, expected)
    settings = {
        "model": options.model or str(card["model"]),
        "model_sha256": lm.sha256,
        "responses": options.responses,
        "max_new_tokens": most,
        "prompt_file": options.prompt_file,
        **card["sampling"],
    }
    return LiveRequests(LiveRunner(source, {int(d): n for n, d in enumerate(wanted)}), settings, source)


def _found(
    lm: LanguageModel, control: Control, wanted: NDArray[np.int64], responses: Responses, prompt_file: str
) -> list[Document]:
    """Documents by their keys, which tell of prompt, answer and seed.

    Raises:
        BadFileError: One is not there.
    """
    from clone_rl.llm.documents import prompt_documents
    from clone_rl.llm.prompt_file import read_prompts
    from clone_rl.llm.prompts import make_prompts

    traces = control.traces
    keys, splits = str(traces.card["keys"]).split(), {SPLITS[traces.split[d]] for d in wanted}
    if prompt_file:
        prompts = [(split, p) for p in read_prompts(Path(prompt_file)) for split in splits if p.split in ("", split)]
    else:
        # As many of each kind as the set has at most: it takes them in order.
        counts = {
            s: max(int((traces.split[traces.kind == k] == SPLITS.index(s)).sum()) for k in range(len(traces.kinds)))
            for s in splits
        }
        prompts = [(split, p) for split in sorted(splits) for p in make_prompts(split, counts[split])]
    known = {document.key: document for document in prompt_documents(lm, prompts, responses)}
    if missing := [int(d) for d in wanted if keys[d] not in known]:
        raise BadFileError(
            f"{len(missing)} of {len(wanted)} prompts of traces {control.scenario.traces!r} are not in "
            f"{prompt_file or 'the shipped prompts'}",
            "give the file that they were recorded from: clone-rl evaluate --live --prompt-file FILE; text has none",
        )
    return [known[keys[d]] for d in wanted]


def run_rows_live(group: Any) -> NDArray[np.void]:
    """The requests of live rows, run again; a ``replay.LiveRunner``.

    Raises:
        CloneRLError: The model or the prompts are not there any more, or are others.
    """
    settings: Mapping[str, Any] = group.live
    names = ("model", "responses", "prompt_file", "max_new_tokens")
    if not all(name in settings for name in names) or settings["responses"] not in ("own", "trace"):
        raise BadFileError("live rows do not say which model answered", "the file was altered; evaluate again")
    documents = np.array([row["document"] for _, row in group.rows])
    keys = np.array([row["seed"] for _, row in group.rows])
    live = live_requests(argparse.Namespace(**{name: settings[name] for name in names}), group.control, documents)
    try:
        return live.runner.run(group.control, group.controller, group.rows[0][1]["split"], documents, keys)
    finally:
        live.close()
