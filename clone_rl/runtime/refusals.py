"""What ``generate`` may be asked for under control; everything else is refused by name."""

from __future__ import annotations

from typing import Any

import torch
from transformers.generation import GenerationMode

from clone_rl.errors import BadValueError
from clone_rl.llm.anatomy import Anatomy

_MODES = (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE)
_IGNORED = ("cache_position", "logits_to_keep", "num_logits_to_keep", "position_ids", "return_dict", "use_cache")
"""What ``generate`` prepares for the model's forward and the stepper prepares itself."""

_UNSEEN = ("output_attentions", "output_hidden_states")


def check_request(anatomy: Anatomy, ids: torch.Tensor, config: Any, asked: dict[str, Any]) -> None:
    """Refuse what cannot be served.

    Args:
        anatomy: Of the model.
        ids: (batch, tokens) the prompt.
        config: The prepared ``GenerationConfig``.
        asked: Everything else that reached ``generate``, by name.

    Raises:
        BadValueError: A mode of decoding, a shape, a length or an argument that cannot be served.
    """
    if config.num_return_sequences is not None and config.num_return_sequences > 1:
        raise BadValueError(f"num_return_sequences is {config.num_return_sequences}", "ask once for each response")
    mode = config.get_generation_mode(asked.pop("assistant_model", None))
    if mode not in _MODES:
        raise BadValueError(f"{mode.value.replace('_', ' ')} under control", "decode greedily or by sampling")
    if ids.ndim != 2 or ids.shape[0] != 1:
        raise BadValueError(f"input_ids of shape {tuple(ids.shape)}", "one sequence at a time: (1, tokens)")
    if ids.shape[1] < 1 or asked.get("inputs_embeds") is not None:
        raise BadValueError("no input_ids", "give the prompt as tokens; inputs_embeds are not served")
    if not 0 <= int(ids.min()) <= int(ids.max()) < anatomy.tokens:
        raise BadValueError("a token that the model does not have", f"it has tokens 0 to {anatomy.tokens - 1}")
    mask = asked.pop("attention_mask", None)
    if mask is not None and not bool((mask == 1).all()):
        raise BadValueError("attention_mask hides tokens", "one sequence needs no padding: drop the padded tokens")
    cache = asked.pop("past_key_values", None)
    if cache is not None and cache.get_seq_length() > 0:
        raise BadValueError("past_key_values hold tokens already", "give the whole text as the prompt")
    if config.cache_implementation not in (None, "dynamic"):
        raise BadValueError(f"cache_implementation {config.cache_implementation!r}", "caches under control are dynamic")
    for name in _UNSEEN:
        if getattr(config, name, False):
            raise BadValueError(f"{name} under control", "layers that an exit skips have none: leave it out")
    for name in _IGNORED:
        asked.pop(name, None)
    if given := [name for name, value in asked.items() if value is not None and value is not False]:
        raise BadValueError(f"argument {given[0]!r} of generate", "it has no meaning under control: leave it out")
    if config.max_length > anatomy.context:
        raise BadValueError(
            f"a prompt of {ids.shape[1]} tokens and {config.max_length - ids.shape[1]} new ones exceed the context of "
            f"{anatomy.context}",
            f"ask for at most {max(0, anatomy.context - ids.shape[1])} new tokens",
        )
