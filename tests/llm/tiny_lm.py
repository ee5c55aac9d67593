"""A language model of four thin layers whose tokens are letters: recordings of it take milliseconds.

A plugin of the tests beside it: PYTEST_DONT_REWRITE.
"""

import pytest
import torch
from llm_models import VOCAB, tiny_model

from clone_rl.hw_emulator.workload import Workload
from clone_rl.llm.model import LanguageModel

CONTEXT = 128
END = 0


class Letters:
    """Every character is a token; none of them is the end."""

    def encode(self, text):
        """Tokens of a text."""
        return [1 + ord(letter) % (VOCAB - 1) for letter in text]


class Means:
    """A probe that anybody can compute."""

    dots, sha256 = 2, "of means"

    def signals(self, hidden, exit_layer):
        """Two made-up signals, other ones at every exit."""
        mean = hidden.float().mean(-1)
        return torch.stack((torch.sigmoid(mean * exit_layer), mean.abs() + exit_layer), -1)


def tiny_language_model(family="llama", **changes):
    """The model; other fields on request."""
    shape = Workload(
        layers=4, hidden_size=32, heads=4, kv_heads=2, ff_size=48, vocab_size=VOCAB, context=CONTEXT, precision="int8"
    )
    fields = {
        "name": "tiny",
        "model": tiny_model(family),
        "tokenizer": Letters(),
        "probe": Means(),
        "shape": shape,
        "sha256": "of the weights",
        "card": {},
        "start_ids": (END,),
        "end_ids": frozenset({END}),
        "precision": "int8",
    }
    return LanguageModel(**{**fields, **changes})


@pytest.fixture(scope="session")
def tiny_lm():
    """The model."""
    return tiny_language_model()
