"""Small synthetic traces that every test of the lower floors shares."""

import signal

from compiled_code import keep_compiled_code

keep_compiled_code()
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what it runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)

import numpy as np  # noqa: E402
import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

from clone_rl.envs.control import load_control  # noqa: E402
from clone_rl.envs.trace import HIDDEN, TraceSet  # noqa: E402
from clone_rl.hw_emulator import Emulator, Workload, load_chip  # noqa: E402

settings.register_profile("clone_rl", deadline=None, max_examples=50, derandomize=True)
settings.load_profile("clone_rl")

LAYERS = 10
KINDS = ["story", "arithmetic", "list", "question"]
SHAPE = Workload(layers=LAYERS, hidden_size=256, heads=4, kv_heads=2, ff_size=768)


def synthetic_traces(documents: int = 30, seed: int = 7) -> TraceSet:
    """Documents whose exits get better with depth, and a probe that knows roughly how good."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 13, documents)
    tokens, exits = int(lengths.sum()), LAYERS - 1
    ease = rng.normal(0.0, 2.0, (tokens, 1)) + np.linspace(-2.0, 5.0, exits)
    chance = 1 / (1 + np.exp(-ease))
    agree = (rng.random((tokens, exits)) < chance).astype(np.float32)
    kl = (1.5 * (1 - chance) * rng.uniform(0.3, 1.0, chance.shape)).astype(np.float32)
    guess = np.clip(chance + rng.normal(0.0, 0.02, chance.shape), 0, 1)
    later = np.random.default_rng(seed + 1)  # columns of later formats leave the draws above as they were
    return TraceSet(
        card={"layers": LAYERS, "kinds": KINDS, "shape": SHAPE.as_dict()},
        offset=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        prompt_tokens=rng.integers(4, 41, documents),
        split=np.repeat([0, 1, 2], [documents - 14, 5, 9]),
        kind=np.arange(documents) % len(KINDS),
        sampled=np.ones(documents, np.int64),
        hidden=later.normal(0.5, 1.5, (tokens, exits, len(HIDDEN))).astype(np.float32),
        margin=later.gamma(1.0, 5.0, (tokens, LAYERS)).astype(np.float32),
        entropy=later.gamma(1.0, 5.0, (tokens, LAYERS)).astype(np.float32),
        signal=np.stack([guess, kl * rng.uniform(0.8, 1.2, kl.shape)], 2).astype(np.float32),
        agree=agree,
        kl=kl,
        dnll=(kl * rng.normal(0.3, 0.3, kl.shape)).astype(np.float32),
    )


@pytest.fixture(scope="session")
def traces():
    """The set in memory."""
    return synthetic_traces()


@pytest.fixture(scope="session")
def trace_folder(traces, tmp_path_factory):
    """The set on disk, as the argument that environments take."""
    folder = tmp_path_factory.mktemp("traces") / "synthetic"
    traces.save(folder)
    return str(folder)


@pytest.fixture(scope="session")
def control(trace_folder):
    """Layer control of the default scenario on the synthetic traces."""
    return load_control("layer", traces=trace_folder)


@pytest.fixture(scope="session")
def emulator():
    """The default chip with the small model."""
    return Emulator(load_chip("asic28-sram"), SHAPE)
