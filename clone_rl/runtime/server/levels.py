"""The service level of a request, from its body or its headers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from clone_rl.envs.scenario import ServiceLevel
from clone_rl.errors import UnknownNameError
from clone_rl.runtime.server.failures import ApiError, shown

LEAST_S, MOST_S = 1e-6, 3600.0
"""Targets that are taken seriously."""

OWN = "request"
"""Name of a service level that a request brings along."""

CLASS_HEADER, TTFT_HEADER, TPOT_HEADER = "x-slo-class", "x-slo-ttft-s", "x-slo-tpot-s"


def service_level(
    given: Any, headers: Mapping[str, str], classes: Sequence[ServiceLevel], default: ServiceLevel
) -> ServiceLevel:
    """What a request asks for: ``slo`` of its body, else its headers, else the server's default.

    Args:
        given: ``slo`` of the body: a class by name, or an object with ``ttft_s`` and ``tpot_s``, in seconds.
        headers: Of the request, by lower-case name.
        classes: The scenario's.
        default: For requests that ask for nothing.

    Raises:
        ApiError: An unknown class, one target without the other, or a target that is no reasonable time.
    """
    if isinstance(given, str):
        return _named(given, classes, "slo")
    if isinstance(given, Mapping):
        if unknown := sorted(given.keys() - {"ttft_s", "tpot_s"}):
            raise ApiError(400, f"slo has an unknown field {unknown[0]!r}", "ttft_s and tpot_s", "slo")
        return _targets(given.get("ttft_s"), given.get("tpot_s"), "slo.ttft_s", "slo.tpot_s")
    if given is not None:
        known = ", ".join(level.name for level in classes)
        raise ApiError(400, f"slo is {shown(given)}", f"a class by name ({known}), or ttft_s and tpot_s", "slo")
    name, *targets = (headers.get(header) for header in (CLASS_HEADER, TTFT_HEADER, TPOT_HEADER))
    if name is not None:
        if targets != [None, None]:
            raise ApiError(400, "a service class and targets of its own", "send one or the other", "X-SLO-Class")
        return _named(name, classes, "X-SLO-Class")
    if targets != [None, None]:
        return _targets(*map(_number, targets), "X-SLO-TTFT-S", "X-SLO-TPOT-S")
    return default


def _named(name: str, classes: Sequence[ServiceLevel], param: str) -> ServiceLevel:
    known = {level.name: level for level in classes}
    if name not in known:
        raise ApiError.of(UnknownNameError("service level", name, known), param)
    return known[name]


def _number(text: str | None) -> Any:
    """A header as a number, or as it is."""
    try:
        return text if text is None else float(text)
    except ValueError:
        return text


def _targets(ttft_s: Any, tpot_s: Any, *params: str) -> ServiceLevel:
    for value, param in zip((ttft_s, tpot_s), params, strict=True):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not LEAST_S <= value <= MOST_S:  # NaN is neither
            found = "is missing" if value is None else f"is {shown(value)}"
            raise ApiError(400, f"{param} {found}", f"seconds, {LEAST_S:g} to {MOST_S:g}; TTFT and TPOT both", param)
    return ServiceLevel(OWN, float(ttft_s), float(tpot_s))
