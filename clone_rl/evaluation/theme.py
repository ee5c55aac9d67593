"""Colours of pictures for light and for dark pages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from clone_rl.evaluation.figure import blank


@dataclass(frozen=True)
class Theme:
    """One look.

    Attributes:
        name: ``light`` or ``dark``.
        paper, ink, faint: Background, text and lines, grid.
        series: Colours that are told apart with any kind of colour vision (Okabe and Ito), one for each series in turn.
        good, bad: Of what holds and of what breaks a limit.
    """

    name: str
    paper: str
    ink: str
    faint: str
    series: tuple[str, ...]
    good: str
    bad: str


LIGHT = Theme(
    "light", "#ffffff", "#1c1f23", "#d4d8dd",
    ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#7a6fd0", "#8c8c00"), "#009e73", "#c43b1d",
)  # fmt: skip
DARK = Theme(
    "dark", "#14171a", "#e6e8ea", "#3a4046",
    ("#56b4e9", "#e69f00", "#2bc79a", "#e19bc4", "#9ad3f5", "#ff8350", "#a79df0", "#cfcf4a"), "#2bc79a", "#ff7a5c",
)  # fmt: skip
THEMES = (LIGHT, DARK)
MARKERS = "osD^vP*Xph<>"


def dressed(figure: Any, theme: Theme) -> None:
    """Give a finished figure the colours of a theme, where it has none of its own."""
    from matplotlib.text import Text

    figure.set_facecolor(theme.paper)
    for axes in figure.axes:
        axes.set_facecolor(theme.paper)
        axes.tick_params(colors=theme.ink, which="both")
        for spine in axes.spines.values():
            spine.set_color(theme.faint)
    for text in figure.findobj(Text):
        if text.get_color() in ("black", "k", "#000000"):
            text.set_color(theme.ink)
    for legend in [*figure.legends, *(a.get_legend() for a in figure.axes if a.get_legend())]:
        legend.get_frame().set_facecolor(theme.paper)


def drawn(draw: Callable[[Any, Theme], None], width_in: float, height_in: float) -> dict[str, bytes]:
    """A picture in every theme, as PNG.

    Args:
        draw: Draws into an empty figure, in the colours of a theme.
        width_in, height_in: Inches, of 110 dots.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    found = {}
    for theme in THEMES:
        figure = blank(width_in, height_in)
        draw(figure, theme)
        dressed(figure, theme)
        written = BytesIO()
        figure.savefig(written, format="png", dpi=110, facecolor=theme.paper, metadata={"Software": None})
        found[theme.name] = written.getvalue()
    return found
