"""A policy's network as an ONNX graph: float32 logits, and the most probable choice of each action component."""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clone_rl.agents.policy import Policy
from clone_rl.envs.observation import OBSERVATION
from clone_rl.errors import MissingExtraError
from clone_rl.version import __version__

OPSET = 20
_IR = 9  # the first that has this opset: older runtimes read it too


def _package(name: str) -> Any:
    """A package of the extra ``export``.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise MissingExtraError(f"ONNX export needs {error.name}", "pip install 'clone-rl[export]'") from None


def metadata(policy: Policy) -> dict[str, str]:
    """What a graph says of where it comes from."""
    known = {key: str(policy.card[key]) for key in ("env_id", "scenario", "chip", "command") if policy.card.get(key)}
    return {
        "clone_rl": __version__,
        "policy": policy.name,
        "policy_sha256": policy.sha256,
        **known,
        "scale": json.dumps(policy.scale and asdict(policy.scale)),
        "limits": json.dumps(policy.card.get("limits")),
        "observation": json.dumps([*OBSERVATION, *policy.signals]),
        "heads": json.dumps(list(policy.heads)),
    }


def onnx_model(policy: Policy) -> bytes:
    """The graph as a file; equal policies give equal bytes.

    Input ``observation`` (N, width) float32; outputs ``logits`` (N, sum of heads) float32 and ``action`` (N, heads) int64.

    Raises:
        MissingExtraError: ``onnx`` is not installed.
    """
    onnx = _package("onnx")
    helper, kinds, array = onnx.helper, onnx.TensorProto, onnx.numpy_helper.from_array
    nodes, constants, x = [], [], "observation"
    for index, (weight, bias) in enumerate(policy.layers):
        names = [f"{index}.weight", f"{index}.bias"]
        constants += [array(np.ascontiguousarray(part), name) for part, name in zip((weight, bias), names, strict=True)]
        last = index == len(policy.layers) - 1
        y = "logits" if last else f"{index}.sum"
        nodes.append(helper.make_node("Gemm", [x, *names], [y], transB=1))
        if not last:
            nodes.append(helper.make_node("Tanh", [y], [x := f"{index}.tanh"]))
    parts = [f"logits.{head}" for head in range(len(policy.heads))]
    constants.append(array(np.array(policy.heads, np.int64), "heads"))
    nodes.append(helper.make_node("Split", ["logits", "heads"], parts, axis=1))
    chosen = [f"action.{head}" for head in range(len(policy.heads))]
    nodes += [helper.make_node("ArgMax", [p], [c], axis=1, keepdims=1) for p, c in zip(parts, chosen, strict=True)]
    nodes.append(helper.make_node("Concat", chosen, ["action"], axis=1))
    width = policy.layers[0][0].shape[1]
    graph = helper.make_graph(
        nodes,
        "clone_rl_policy",
        [helper.make_tensor_value_info("observation", kinds.FLOAT, ["N", width])],
        [
            helper.make_tensor_value_info("logits", kinds.FLOAT, ["N", sum(policy.heads)]),
            helper.make_tensor_value_info("action", kinds.INT64, ["N", len(policy.heads)]),
        ],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=_IR, producer_name="clone-rl")
    helper.set_model_props(model, metadata(policy))
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))


class OnnxPolicy:
    """A graph in onnxruntime, on one thread.

    Args:
        model: The file's bytes.

    Raises:
        MissingExtraError: ``onnxruntime`` is not installed.
    """

    def __init__(self, model: bytes) -> None:
        onnxruntime = _package("onnxruntime")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def logits(self, observations: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, sum of heads) logits."""
        return np.asarray(self._session.run(["logits"], {"observation": observations})[0])

    def act(self, observations: NDArray[np.float32]) -> NDArray[np.int64]:
        """(N, heads) actions."""
        return np.asarray(self._session.run(["action"], {"observation": observations})[0])
