"""A host that was measured, and what a request of it was shown."""

from clone_rl.envs.observation import OBSERVATION
from clone_rl.runtime import measured_host

MEASURED = {
    "layers": 4, "contexts": [16, 64], "decode_s": [[2e-3, 1e-3], [4e-3, 2e-3]], "prompts": [8, 32],
    "prefill_s": [[4e-3, 2e-3], [8e-3, 4e-3]], "head_s": [2e-3, 1e-3], "switch_s": 1e-4, "decide_s": 5e-5,
}  # fmt: skip


def measured(**changes):
    return measured_host(**{**MEASURED, "slowdown": 1.5, **changes})


def shown(request, name):
    return float(request._seen[OBSERVATION.index(name)])
