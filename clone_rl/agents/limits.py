"""The limits that a user sets on what control may cost the response."""

from __future__ import annotations

from dataclasses import dataclass

from clone_rl.errors import BadValueError


@dataclass(frozen=True)
class Limits:
    """Means per token that a controller has to stay within.

    Attributes:
        miss: Share of tokens later than their due time.
        disagree: Share of tokens whose exit disagrees with full depth.
        dnll: Increase of the negative log-likelihood, nats per token.

    Raises:
        BadValueError: A limit is negative or not a number.
    """

    miss: float = 0.01
    disagree: float = 0.02
    dnll: float = 0.02

    def __post_init__(self) -> None:
        for name in ("miss", "disagree", "dnll"):
            if not getattr(self, name) >= 0:
                raise BadValueError(f"limit {name} is {getattr(self, name)}", "limits are 0 or more")
