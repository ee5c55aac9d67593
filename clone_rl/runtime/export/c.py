"""A policy as a C99 header, in double precision or in integers, and a program that checks it on golden vectors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clone_rl.agents.policy import Policy
from clone_rl.envs.observation import OBSERVATION
from clone_rl.runtime.export.fixed import ONE_BITS, TANH, TANH_BITS, TANH_STEPS, FixedPolicy, inputs_of
from clone_rl.version import __version__

GOLDEN = 200
"""Golden vectors."""


def plain_name(text: str) -> str:
    """What of a name may stand in a file's name and in a comment.

    >>> plain_name("../mine */ x"), plain_name("")
    ('mine_x', 'policy')
    """
    return re.sub(r"[^A-Za-z0-9-]+", "_", text).strip("_") or "policy"


def _rows(values: Iterable[str], indent: str) -> str:
    """Values in lines of 100 characters at most, a comma behind each but the last."""
    lines = [""]
    for value in values:
        if len(lines[-1]) + len(value) > 100:
            lines.append("")
        lines[-1] += f"{value}, "
    return "\n".join(f"{indent}{line.rstrip()}" for line in lines).rstrip(",")


def _literal(value: Any, suffix: str) -> str:
    """An integer, or a float without rounding."""
    return str(int(value)) if isinstance(value, np.integer) else f"{float(value).hex()}{suffix}"


def _array(kind: str, name: str, values: NDArray[Any], suffix: str = "") -> str:
    """A constant array of one or two dimensions."""
    if values.ndim == 1:
        body = _rows((_literal(v, suffix) for v in values), "    ")
    else:
        body = ",\n".join("    {\n" + _rows((_literal(v, suffix) for v in row), "        ") + "\n    }" for row in values)
    sizes = "".join(f"[{n}]" for n in values.shape)
    return f"static const {kind} {name}{sizes} = {{\n{body}\n}};\n"


def _preamble(policy: Policy, guard: str, text: Sequence[str], include: str) -> str:
    card = policy.card
    known = [f"{key}: {plain_name(str(card[key]))}" for key in ("scenario", "chip") if card.get(key)]
    lines = [
        f"clone-rl {__version__} export of policy {plain_name(policy.name)}",
        *known,
        *([f"targets observed as 1: ttft {scale.ttft_s:g} s, tpot {scale.tpot_s:g} s"] if (scale := policy.scale) else []),
        f"policy sha256: {policy.sha256}",
        f"observation: {', '.join((*OBSERVATION, *policy.signals))}",
        *text,
    ]
    comment = "\n".join(f" * {line}" for line in lines)
    width, heads = policy.layers[0][0].shape[1], len(policy.heads)
    return (
        f"/*\n{comment}\n */\n#ifndef {guard}\n#define {guard}\n\n{include}\n\n"
        f"#define CLONE_RL_INPUTS {width}\n#define CLONE_RL_LOGITS {sum(policy.heads)}\n#define CLONE_RL_HEADS {heads}\n"
        f'#define CLONE_RL_SHA256 "{policy.sha256}"\n\n'
    )


def _choice(policy: Policy, kind: str, logit: str) -> str:
    """The functions that choose, from ``clone_rl_logits``; ties go to the first."""
    if len(policy.heads) == 1:
        head = (
            f"/* The action with the largest logit. */\nstatic inline int clone_rl_decide(const {kind} *observation)\n{{\n"
            f"    {logit} logits[CLONE_RL_LOGITS];\n    int best = 0;\n\n    clone_rl_logits(observation, logits);\n"
        )
        loop = "    for (int j = 1; j < CLONE_RL_LOGITS; j++)\n        if (logits[j] > logits[best])\n            best = j;\n"
        return head + loop + "    return best;\n}\n"
    ends = ", ".join(str(end) for end in np.cumsum(policy.heads))
    return (
        f"/* The component with the largest logit, for each part of the action. */\n"
        f"static inline void clone_rl_decide(const {kind} *observation, int action[CLONE_RL_HEADS])\n{{\n"
        f"    static const int ends[CLONE_RL_HEADS] = {{{ends}}};\n"
        f"    {logit} logits[CLONE_RL_LOGITS];\n    int start = 0;\n\n"
        "    clone_rl_logits(observation, logits);\n    for (int head = 0; head < CLONE_RL_HEADS; head++) {\n"
        "        int best = start;\n        for (int j = start + 1; j < ends[head]; j++)\n"
        "            if (logits[j] > logits[best])\n                best = j;\n"
        "        action[head] = best - start;\n        start = ends[head];\n    }\n}\n"
    )


def _layers(shapes: Sequence[tuple[int, int]], real: str, wide: str, activate: Sequence[str]) -> str:
    """The body of ``clone_rl_logits``: one layer after the other, input by input as the package's own rule adds."""
    lines = []
    for index, (rows, columns) in enumerate(shapes):
        last = index == len(shapes) - 1
        x, y = f"x{index}", "logits" if last else f"y{index}"
        if not last:
            lines.append(f"    {wide} {y}[{columns}];")
        lines += [
            f"    for (int j = 0; j < {columns}; j++)",
            f"        {y}[j] = clone_rl_bias{index}[j];",
            f"    for (int i = 0; i < {rows}; i++)",
            f"        for (int j = 0; j < {columns}; j++)",
            f"            {y}[j] += {x}[i] * clone_rl_weight{index}[i][j];",
        ]
        if not last:
            lines += [
                f"    {real} x{index + 1}[{columns}];",
                f"    for (int j = 0; j < {columns}; j++)",
                f"        x{index + 1}[j] = {activate[index]};",
            ]
    return "\n".join(lines) + "\n}\n\n"


def c_header(policy: Policy) -> str:
    """The policy in double precision, as the package's compiled rule computes it: the same operations in the same order.

    It needs ``exp`` of ``math.h`` and nothing else.
    """
    shapes = [(weight.shape[1], weight.shape[0]) for weight, _ in policy.layers]
    text = (
        "C99; needs exp (math.h, -lm) and nothing else. Logits are those of the package to the last bit where exp is,",
        "and where a product and its sum are not contracted (-std=c99, or -ffp-contract=off).",
    )
    parts = [_preamble(policy, "CLONE_RL_POLICY_H", text, "#include <math.h>")]
    for index, (weight, bias) in enumerate(policy.layers):
        parts.append(_array("float", f"clone_rl_weight{index}", np.ascontiguousarray(weight.T), "f"))
        parts.append(_array("float", f"clone_rl_bias{index}", bias, "f") + "\n")
    tanh = [f"1.0 - 2.0 / (exp(2.0 * y{index}[j]) + 1.0)" for index in range(len(shapes))]
    parts.append(
        "static inline void clone_rl_logits(const float *observation, double logits[CLONE_RL_LOGITS])\n{\n"
        "    double x0[CLONE_RL_INPUTS];\n    for (int i = 0; i < CLONE_RL_INPUTS; i++)\n        x0[i] = observation[i];\n"
        + _layers(shapes, "double", "double", tanh)
    )
    return "".join([*parts, _choice(policy, "float", "double"), "\n#endif\n"])


_TANH_C = f"""\
/* tanh of a sum with so many bits more than the table's steps; straight lines in between. */
static inline int32_t clone_rl_tanh(int32_t sum, int bits)
{{
    int32_t size = sum < 0 ? -sum : sum, step = size >> bits, value = clone_rl_tanh_table[{TANH_STEPS}];

    if (step < {TANH_STEPS}) {{
        int32_t low = clone_rl_tanh_table[step], rise = clone_rl_tanh_table[step + 1] - low;
        value = low + ((rise * (size - (step << bits)) + ((int32_t)1 << (bits - 1))) >> bits);
    }}
    return sum < 0 ? -value : value;
}}

"""

_QUANTISE_C = f"""\
/* Observations within [-1, 1] as clone_rl_decide takes them; for hosts that have floats. */
static inline void clone_rl_quantise(const float *observation, int16_t inputs[CLONE_RL_INPUTS])
{{
    for (int i = 0; i < CLONE_RL_INPUTS; i++) {{
        float x = !(observation[i] > -1.0f) ? -1.0f : observation[i] > 1.0f ? 1.0f : observation[i];
        inputs[i] = (int16_t)(x * {2**ONE_BITS}.0f + (x < 0.0f ? -0.5f : 0.5f));
    }}
}}

"""


def fixed_c_header(policy: Policy, fixed: FixedPolicy) -> str:
    """The policy in integers, without a library: the same bits on every machine."""
    shapes = [layer.weight.shape for layer in fixed.layers]
    text = (f"C99 in integers; no library. Inputs are observations times {2**ONE_BITS}, see clone_rl_quantise.",)
    parts = [_preamble(policy, "CLONE_RL_POLICY_H", text, "#include <stdint.h>")]
    for index, layer in enumerate(fixed.layers):
        parts.append(_array("int16_t", f"clone_rl_weight{index}", layer.weight))
        parts.append(_array("int32_t", f"clone_rl_bias{index}", layer.bias) + "\n")
    parts += [_array("int16_t", "clone_rl_tanh_table", TANH) + "\n", _TANH_C, _QUANTISE_C]
    bits = [layer.shift + ONE_BITS - TANH_BITS for layer in fixed.layers]
    tanh = [f"clone_rl_tanh(y{index}[j], {bits[index]})" for index in range(len(shapes))]
    one = 2**ONE_BITS
    parts.append(
        "static inline void clone_rl_logits(const int16_t *observation, int32_t logits[CLONE_RL_LOGITS])\n{\n"
        "    int32_t x0[CLONE_RL_INPUTS];\n    for (int i = 0; i < CLONE_RL_INPUTS; i++)\n"
        f"        x0[i] = observation[i] < -{one} ? -{one} : observation[i] > {one} ? {one} : observation[i];\n"
        + _layers(shapes, "int32_t", "int32_t", tanh)
    )
    return "".join([*parts, _choice(policy, "int16_t", "int32_t"), "\n#endif\n"])


def constant_bytes(policy: Policy, fixed: FixedPolicy | None) -> int:
    """Bytes of constants that a header puts into the program."""
    if fixed is None:
        return 4 * policy.parameters
    return sum(2 * layer.weight.size + 4 * layer.bias.size for layer in fixed.layers) + 2 * len(TANH)


def golden_vectors(actions: NDArray[np.int64], count: int = GOLDEN) -> NDArray[np.int64]:
    """Which of some observations become golden vectors: spread over the actions that occur.

    Args:
        actions: (N, heads) what the policy does there.
        count: How many, roughly.
    """
    groups = np.unique(actions, axis=0, return_inverse=True)[1].ravel()
    each = max(1, count // (groups.max() + 1))
    found = []
    for group in range(min(int(groups.max()) + 1, count)):
        members = np.flatnonzero(groups == group)
        found.append(members[np.linspace(0, len(members) - 1, min(each, len(members))).astype(np.int64)])
    return np.sort(np.concatenate(found))


def _golden(policy: Policy, fixed: FixedPolicy | None, observations: NDArray[np.float32]) -> tuple[NDArray[Any], ...]:
    """What a header reads, chooses and has as logits."""
    if fixed is None:
        return observations, policy.act(observations), rule_logits(policy, observations)
    inputs = inputs_of(observations)
    return inputs, fixed.act(inputs), fixed.sums(inputs)


def golden_program(policy: Policy, fixed: FixedPolicy | None, header: str, observations: NDArray[np.float32]) -> str:
    """A C99 program that runs a header on observations and fails if a decision is not the package's own.

    Args:
        policy: The source.
        fixed: The same in integers, if the header is.
        header: File to include.
        observations: (M, width) golden vectors.
    """
    kind, number = ("float", "double") if fixed is None else ("int16_t", "int32_t")
    seen, actions, logits = _golden(policy, fixed, observations)
    arrays = [
        _array(kind, "observations", seen, "f"),
        _array(number, "expected_logits", logits),
        _array("int", "expected_actions", actions),
    ]
    one = len(policy.heads) == 1
    call = f"{'action[0] = ' if one else ''}clone_rl_decide(observations[k]{'' if one else ', action'});"
    return (
        f'/* Golden vectors of {header}: gcc -std=c99 -Wall -Wextra -Werror FILE -lm && ./a.out */\n#include "{header}"\n'
        "#include <stdio.h>\n\n" + "\n".join(arrays) + "\n"
        "int main(void)\n{\n"
        f"    int count = {len(seen)}, same_actions = 0, same_logits = 0;\n\n"
        "    for (int k = 0; k < count; k++) {\n"
        f"        {number} logits[CLONE_RL_LOGITS];\n        int action[CLONE_RL_HEADS], right = 1, exact = 1;\n\n"
        f"        {call}\n        clone_rl_logits(observations[k], logits);\n"
        "        for (int i = 0; i < CLONE_RL_HEADS; i++)\n            right &= action[i] == expected_actions[k][i];\n"
        "        for (int i = 0; i < CLONE_RL_LOGITS; i++)\n            exact &= logits[i] == expected_logits[k][i];\n"
        "        same_actions += right;\n        same_logits += exact;\n    }\n"
        '    printf("%d of %d decisions equal, logits of %d to the last bit\\n", same_actions, count, same_logits);\n'
        "    return same_actions != count;\n}\n"
    )


def rule_logits(policy: Policy, observations: NDArray[np.float32]) -> NDArray[np.float64]:
    """(N, sum of heads) logits as the compiled rule has them, in double precision.

    The rule leaves them in its memory: in the first half where the number of layers is even.
    """
    memory = policy.memory(len(observations))
    policy.act(observations, memory)
    start = 0 if len(policy.layers) % 2 == 0 else memory.shape[1] // 2
    return memory[:, start : start + sum(policy.heads)].copy()
