"""What a controller sees of a request whose host tells what it knows: the kernel's own observation, at every boundary."""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
from numba import types
from numba.experimental import structref
from numpy.typing import NDArray

from clone_rl.code_cache import kept
from clone_rl.envs.compiling import compiled, entry
from clone_rl.envs.kernel import World, top_point
from clone_rl.envs.observation import N_OBS, observe
from clone_rl.envs.pointer import Pointer, PointerType
from clone_rl.envs.scenario import ServiceLevel
from clone_rl.envs.signals import EXTRA_SIGNALS, shown
from clone_rl.envs.state import STATE
from clone_rl.envs.trace import HIDDEN, scaled_signal
from clone_rl.errors import BadValueError, UnknownNameError
from clone_rl.ranges import Range
from clone_rl.runtime.host import HostTables
from clone_rl.runtime.measurements import check_counts
from clone_rl.runtime.progress import follow

_DEPTH, _READ = EXTRA_SIGNALS.index("depth"), len(HIDDEN)
_TOLD = tuple(name for name in EXTRA_SIGNALS if name != "depth")
_PROMPT, _FIRST, _READS, _OVER = range(4)
"""Where one is: in the prompt, before a decoded token's first layer, after one, where the probe reads, or at the end."""

_DIE = Range("Celsius", -100.0, 250.0)


@structref.register
class _LookoutType(PointerType):
    """Numba's type of a ``_Lookout``."""


class _Lookout(Pointer):
    """A host, a request, the signals that were told and the place for the observation: one pointer to pass."""


structref.define_proxy(_Lookout, _LookoutType, ["world", "state", "missing", "chosen", "told", "seen"])


@compiled
def _seen(
    world: World, s: Any, missing: Any, chosen: Any, told: Any, seen: Any,
    clock_s: float, sure: float, kl: float, busy: bool, die_c: float,
) -> None:  # fmt: skip
    rules = world.rules[0]
    # The first step's cost includes waking.
    s.clock_s = clock_s + (world.prices.chip[s.variant].wake_s if s.step == 0 else 0.0)
    if rules.per_token and s.token > 0 and s.layer == 0:
        s.due_s = s.clock_s + s.tpot_s
    s.busy, s.stretch, s.die_c = int(busy), s.slowdown if busy else 1.0, die_c
    if rules.probe and s.token > 0 and s.layer > 0:
        s.sure, s.kl_shown = sure, kl
        if s.layer == 1:
            s.sure_before = s.sure
    observe(s, missing, world, seen)
    for i in range(len(chosen)):
        which, raw = chosen[i], told[i]
        if which == _DEPTH:
            raw = s.left / rules.layers
        elif which < _READ and not (rules.probe and s.token > 0 and s.layer > 0):
            raw = 0.0
        seen[N_OBS + i] = shown(which, raw)


@compiled
def _taken(world: World, s: Any, missing: Any, action: int) -> int:
    rules = world.rules[0]
    if rules.delay:
        action, s.pending = s.pending, action
    s.sure_before = s.sure
    s.step += 1
    if follow(rules, world.prices.at.shape[1], top_point(s, world), s, missing, action) and not rules.per_token:
        s.due_s += s.tpot_s
    if s.token == 0:
        return _PROMPT
    return _READS if s.layer > 0 else _FIRST if s.token < s.tokens else _OVER


@kept
def _look(lookout: Any, clock_s: float, sure: float, kl: float, busy: bool, die_c: float) -> None:
    _seen(
        lookout.world, lookout.state[0], lookout.missing, lookout.chosen, lookout.told, lookout.seen,
        clock_s, sure, kl, busy, die_c,
    )  # fmt: skip


@kept
def _take(lookout: Any, action: int) -> int:
    return _taken(lookout.world, lookout.state[0], lookout.missing, action)


def _number(value: Any) -> float:
    """A number, NaN for what is none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _stored(value: float) -> float:
    """A reading as trace sets hold it, which controllers were trained on: through float16."""
    return float(np.float16(min(value, 65504.0)))


class Lookout:
    """The observations of one request.

    Args:
        tables: The host, as the controller finds it.
        seen: (width,) float32 where observations are written.
        level: Targets of the request.
        prompt_tokens: Of its prompt.
        max_new_tokens: Of its response, at most.
        expected_tokens: Predicted length of its response; None is ``max_new_tokens``.
        waited_s: Seconds that it has waited.
        point: Operating point in force.

    Raises:
        BadValueError: A number is wrong, or the host's tables do not reach as far.
    """

    def __init__(
        self,
        tables: HostTables,
        seen: NDArray[np.float32],
        level: ServiceLevel,
        prompt_tokens: int,
        max_new_tokens: int,
        expected_tokens: float | None = None,
        waited_s: float = 0.0,
        point: int = 0,
    ) -> None:
        check_counts(prompt_tokens=prompt_tokens, max_new_tokens=max_new_tokens)
        expected = max_new_tokens if expected_tokens is None else expected_tokens
        for name, value in (("expected_tokens", expected), ("waited_s", waited_s)):
            if not 0.0 <= _number(value) < math.inf:
                raise BadValueError(f"{name} is {value!r}", "a finite number, 0 or more")
        longest, world = prompt_tokens + max_new_tokens, tables.world(prompt_tokens + max_new_tokens)
        if tables.reach is not None:
            prompts = world.layer_s.shape[2] - int(world.prices.prefill[0]) - 1
            if prompt_tokens > prompts:
                raise BadValueError(f"a prompt of {prompt_tokens} tokens", f"the host has times of {prompts} at most")
            if longest > tables.reach + 1:
                raise BadValueError(
                    f"{prompt_tokens} + {max_new_tokens} tokens", f"the host has times of contexts to {tables.reach}"
                )
        rules, chip = world.rules[0], world.prices.chip[0]
        state, layers = np.zeros(1, STATE), int(rules["layers"])
        for field, number in (
            ("prompt", prompt_tokens),
            ("tokens", max_new_tokens),
            ("point", point),
            ("pending", point),
            ("slowdown", 0.5 * (rules["slowdown_low"] + rules["slowdown_high"])),
            ("ttft_s", level.ttft_s),
            ("tpot_s", level.tpot_s),
            ("due_s", level.ttft_s),
            ("ttft_shown", min(1.0, level.ttft_s / rules["max_ttft_s"])),
            ("tpot_shown", min(1.0, level.tpot_s / rules["max_tpot_s"])),
            ("length_shown", min(1.0, expected / rules["max_length"])),
            ("kl_shown", 1.0),
        ):
            state[field] = number
        signals = tables.scenario.signals
        self._told = np.zeros(len(signals))
        self._places = {name: i for i, name in enumerate(signals) if name != "depth"}
        self._read = tuple(name for name in self._places if name in HIDDEN)
        self._of_token = tuple(name for name in self._places if name not in HIDDEN)
        chosen = np.array([EXTRA_SIGNALS.index(name) for name in signals], np.int64)
        self._probes, self._delays = bool(rules["probe"]), bool(rules["delay"])
        self._at, self._die_c = _PROMPT, float(chip["ambient_c"])
        self._lookout = _Lookout(world, state, np.zeros(layers, np.int64), chosen, self._told, seen)
        self._point = state["point"].item
        kind, real = numba.typeof(self._lookout), types.float64
        self._see = entry(_look, kind, real, real, real, types.boolean, real)
        self._follow = entry(_take, kind, types.int64)

    def look(
        self,
        clock_s: float,
        probe: Any = None,
        busy: Any = False,
        die_c: float | None = None,
        **signals: float,
    ) -> None:
        """Write the observation of this boundary; arguments as of ``RuntimeRequest.decide``.

        Raises:
            BadValueError: Something is missing, given where there is none, or no such value; nothing has changed then.
            UnknownNameError: Nobody knows such a signal.
        """
        if self._at == _OVER:
            raise BadValueError("the response has as many tokens as it may have", "begin(max_new_tokens=...) says how many")
        reads, sure, kl = self._at == _READS, 0.0, 1.0
        if probe is not None:
            sure, kl = self._reading(probe)
        elif reads and self._probes:
            raise BadValueError(
                "no probe reading, and the controller reads the exit probe",
                "decide(probe=(probability of agreement, predicted KL in nats)) once a layer of a decoded token has run",
            )
        if busy is not True and busy is not False:
            if not isinstance(busy, int | np.bool_) or busy not in (0, 1):
                raise BadValueError(f"busy is {busy!r}", "True or False")
            busy = bool(busy)
        if die_c is not None:
            die_c = self._celsius(die_c)
        if signals or self._places:
            self._tell(signals)
        if die_c is not None:
            self._die_c = die_c
        self._see(self._lookout, clock_s, sure, kl, busy, self._die_c)

    @property
    def may_exit(self) -> bool:
        """Whether an exit that is decided on now can be one; a decision that is delayed is for another boundary."""
        return self._at == _READS or self._delays

    @property
    def point(self) -> int:
        """Operating point in force."""
        return int(self._point())

    def took(self, action: int) -> None:
        """The step that was decided on: 0 to the top operating point, or one more to exit."""
        self._at = self._follow(self._lookout, action)

    def _reading(self, probe: Any) -> tuple[float, float]:
        """As it is observed."""
        if self._at != _READS:
            raise BadValueError(
                f"a probe reading of {probe!r} where there is none",
                "leave it out in the prompt's layers and before the first layer of a token",
            )
        try:
            agree, kl = (float(each) for each in probe)
        except (TypeError, ValueError):
            raise BadValueError(f"probe is {probe!r}", "(probability of agreement, predicted KL in nats)") from None
        if not (0.0 <= agree <= 1.0 and 0.0 <= kl < math.inf):
            raise BadValueError(f"probe is ({agree}, {kl})", "a probability, and finite nats, 0 or more")
        return scaled_signal(_stored(agree), _stored(kl))

    @staticmethod
    def _celsius(die_c: Any) -> float:
        if math.isnan(found := _number(die_c)):
            raise BadValueError(f"die_c is {die_c!r}", "degrees Celsius")
        _DIE.check(found, "die_c")
        return found

    def _tell(self, signals: dict[str, float]) -> None:
        """Take in extra signals; those that the controller does not read are only checked."""
        kept = {}
        for name, value in signals.items():
            if name not in _TOLD:
                raise UnknownNameError("argument of decide", name, ("probe", "busy", "die_c", *_TOLD))
            if (name in HIDDEN and self._at != _READS) or self._at == _PROMPT:
                raise BadValueError(
                    f"a {name} of {value!r} where there is none",
                    "leave it out in the prompt's layers" + (" and before a token's first layer" if name in HIDDEN else ""),
                )
            number = _number(value)
            if not math.isfinite(number):
                raise BadValueError(f"{name} is {value!r}", "a finite number")
            if name in self._places:
                kept[self._places[name]] = math.copysign(_stored(abs(number)), number)
        wanted = self._read if self._at == _READS and self._probes else self._of_token if self._at == _FIRST else ()
        for name in wanted:
            if name not in signals:
                raise BadValueError(
                    f"no {name}, and the controller reads it",
                    "of this boundary" if name in HIDDEN else "of the token before, at the first boundary of each token",
                )
        for place, number in kept.items():
            self._told[place] = number
