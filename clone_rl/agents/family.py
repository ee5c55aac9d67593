"""One network for many limits: it takes them as one more input, which is fixed before it decides anything."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np

from clone_rl.agents.policy import Policy
from clone_rl.agents.weights import LIMITS
from clone_rl.envs.scenario import Limits
from clone_rl.errors import BadValueError, PolicyFileError

TIGHTEST, LOOSEST = 0.5, 2.0
"""Range of the factor on all limits that a family is trained for."""


def shown(scale: float) -> float:
    """A factor on the limits as it is observed: from -1, half of them, to 1, twice them."""
    return math.log2(scale) / math.log2(LOOSEST)


def times(limits: Limits, scale: float) -> Limits:
    """Limits times a factor.

    >>> times(Limits(), 0.5)
    Limits(miss=0.005, disagree=0.01, dnll=0.01)
    """
    return Limits(**{name: scale * value for name, value in asdict(limits).items()})


@dataclass(frozen=True)
class PolicyFamily(Policy):
    """A network that reads how tight the limits are, behind everything else.

    ``within`` makes it a policy like any other, with that input folded into the first layer's biases: deciding costs what it
    costs an unconditioned one. Its file is a policy's; ``Policy.load`` does both.
    """

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of what it reads."""
        return (*super().inputs, LIMITS)

    @property
    def base(self) -> Limits:
        """The limits that a factor of 1 stands for.

        Raises:
            PolicyFileError: The card does not say.
        """
        try:
            return Limits(**{name: float(self.card["limits"][name]) for name in asdict(Limits())})
        except (KeyError, TypeError, ValueError):
            raise PolicyFileError("the card of a conditioned policy has no limits", "train it again") from None

    def within(self, limits: Limits | None = None) -> Policy:
        """The policy that holds these limits.

        One factor stands for all of them: that of the tightest, as compared with those that it was trained around. Looser ones
        than it was trained for are held as the loosest that it was.

        Args:
            limits: What has to hold; None is what it was trained around.

        Raises:
            BadValueError: A limit is tighter than it was trained for.
        """
        base = self.base
        limits = limits or base
        factors = {name: getattr(limits, name) / value for name, value in asdict(base).items()}
        name = min(factors, key=lambda each: factors[each])
        if (scale := min(LOOSEST, factors[name])) < TIGHTEST * (1.0 - 1e-9):
            raise BadValueError(
                f"max_{name} is {getattr(limits, name):g}, and policy {self.name!r} was trained for "
                f"{TIGHTEST * getattr(base, name):g} to {LOOSEST * getattr(base, name):g}",
                "loosen it, or train a policy for it",
            )
        return self.at(scale)

    def at(self, scale: float) -> Policy:
        """The policy for limits of so many times those that it was trained around."""
        (weight, bias), *rest = self.layers
        folded = (bias + weight[:, -1] * np.float32(shown(scale))).astype(np.float32)
        layers = ((np.ascontiguousarray(weight[:, :-1]), folded), *rest)
        card = {**self.card, "limits": asdict(times(self.base, scale)), "family_sha256": self.sha256}
        return Policy(layers, self.heads, card, self.name, self.probes, self.signals)
