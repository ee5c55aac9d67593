"""Pictures of a request in flight: a few lines of text, or an image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from clone_rl.envs.control import Control
from clone_rl.errors import MissingExtraError

_SIZE = (640, 360)
_BARS = " ▁▂▃▄▅▆▇█"
_STRIP = 48
"""Tokens that are shown, the last ones."""

_INK, _PALE, _PAPER, _GREEN, _RED = (34, 34, 34), (214, 214, 214), (255, 255, 255), (46, 125, 50), (198, 40, 40)
_LOW, _HIGH = (68, 1, 84), (253, 200, 37)


@dataclass(frozen=True)
class Frame:
    """What there is to see.

    Attributes:
        chip, scenario: Names.
        voltage_v, frequency_hz: Operating point.
        top_v: Voltage of the top point.
        level: Operating point over the top one.
        die_c, throttle_c: Temperature of the die, and where throttling begins.
        token, tokens, layer, layers, done: Where the request stands.
        slack_s, target_s: Time to the due time, and the target that it began with.
        energy_j: So far.
        busy: Whether the co-runner is.
        emitted: For each token so far: its depth, its last layer's point over the top one, whether it was late.
    """

    chip: str
    scenario: str
    voltage_v: float
    top_v: float
    frequency_hz: float
    level: float
    die_c: float
    throttle_c: float
    token: int
    tokens: int
    layer: int
    layers: int
    done: bool
    slack_s: float
    target_s: float
    energy_j: float
    busy: bool
    emitted: tuple[tuple[int, float, bool], ...]

    @classmethod
    def of(cls, control: Control, s: Any, emitted: list[tuple[int, int, bool]]) -> Self:
        """The frame of a state.

        Args:
            control: What is stepped.
            s: Record of ``STATE``.
            emitted: For each token so far: depth, point, lateness.
        """
        emulator = control.emulators[int(s["variant"])]
        point, top = emulator.points[int(s["point"])], emulator.top
        return cls(
            chip=emulator.chip.name,
            scenario=control.scenario.name,
            voltage_v=float(point["voltage_v"]),
            top_v=float(emulator.points[top]["voltage_v"]),
            frequency_hz=float(point["frequency_hz"]),
            level=int(s["point"]) / top,
            die_c=float(s["die_c"]),
            throttle_c=emulator.chip.thermal.throttle_c,
            token=int(s["token"]),
            tokens=int(s["tokens"]),
            layer=int(s["layer"]),
            layers=control.traces.layers,
            done=bool(s["done"]),
            slack_s=float(s["due_s"] - s["clock_s"]),
            target_s=float(s["tpot_s"] if s["token"] else s["ttft_s"]),
            energy_j=float(s["energy_j"]),
            busy=bool(s["busy"]),
            emitted=tuple((depth, point / top, late) for depth, point, late in emitted),
        )

    @property
    def headline(self) -> str:
        """Chip and operating point."""
        return f"{self.chip} | {self.scenario} | {self.voltage_v:.2f} V {self.frequency_hz / 1e6:.0f} MHz | {self.die_c:.1f} C"

    @property
    def progress(self) -> str:
        """Where the request stands."""
        late = sum(late for *_, late in self.emitted)
        where = f"token {self.token}/{self.tokens} layer {self.layer}/{self.layers}"
        if self.done:
            where = f"{self.tokens} tokens, ended"
        return f"{where} | {self.energy_j * 1e6:.1f} uJ | {late} late" + (" | co-runner" if self.busy else "")

    @property
    def due(self) -> str:
        """Time to the due time of the token in flight."""
        return "nothing is due" if self.done else f"due in {self.slack_s * 1e3:+.3f} ms"

    @property
    def share(self) -> float:
        """Time to the due time over the target, within -1 to 1; 0 where nothing is due."""
        return 0.0 if self.done else min(1.0, max(-1.0, self.slack_s / self.target_s))


def ansi(frame: Frame) -> str:
    """Lines of text: chip and point, progress, slack, and the depth of every token (a full bar is full depth)."""
    cells = round(abs(frame.share) * 20)
    bar = ("#" if frame.share >= 0 else "!") * cells
    depths = "".join(_BARS[round(depth / frame.layers * 8)] for depth, *_ in frame.emitted[-_STRIP:])
    return "\n".join([frame.headline, frame.progress, f"{frame.due} [{bar:<20}]", f"depth |{depths}|"])


def draw(frame: Frame) -> NDArray[np.uint8]:
    """An image, (360, 640, 3): the same, with each token's bar in the colour of its voltage and late ones marked red.

    Raises:
        MissingExtraError: Pillow is not installed.
    """
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError:
        raise MissingExtraError("render_mode 'rgb_array' needs Pillow", "pip install 'clone-rl[plot]'") from None
    image = Image.new("RGB", _SIZE, _PAPER)
    pen = ImageDraw.Draw(image)
    small = ImageFont.load_default(14)

    def line(top: int, text: str, size: int) -> None:
        while size > 6 and pen.textlength(text, ImageFont.load_default(size)) > 600:  # names may be long
            size -= 1
        pen.text((20, top), text, _INK, ImageFont.load_default(size))

    line(14, frame.headline, 19)
    line(44, frame.progress, 14)

    def gauge(top: int, label: str, share: float, colour: tuple[int, int, int]) -> None:
        pen.text((20, top), label, _INK, small)
        pen.rectangle((210, top + 2, 620, top + 16), _PALE)
        if share > 0:
            pen.rectangle((210, top + 2, 210 + round(410 * min(1.0, share)), top + 16), colour)

    gauge(76, f"voltage {frame.voltage_v:.2f} of {frame.top_v:.2f} V", frame.voltage_v / frame.top_v, _colour(frame.level))
    gauge(102, f"die {frame.die_c:.1f} of {frame.throttle_c:.0f} C", frame.die_c / frame.throttle_c, _RED)
    pen.text((20, 128), frame.due, _INK, small)
    pen.rectangle((210, 130, 620, 144), _PALE)
    middle, end = 415, 415 + round(205 * frame.share)
    if end != middle:
        pen.rectangle((min(middle, end), 130, max(middle, end), 144), _GREEN if frame.share >= 0 else _RED)
    pen.line((middle, 127, middle, 147), _INK, 2)

    shown = frame.emitted[-(_STRIP - 1 if frame.layer else _STRIP) :]  # the last place is the token's in flight
    first, last = len(frame.emitted) - len(shown) + 1, len(frame.emitted)
    title = "layers run by each token" if first == 1 else f"layers run by each of the tokens {first} to {last}"
    pen.text((20, 160), title, _INK, small)
    left, floor, height, width = 52, 338, 150, 568 / _STRIP
    pen.line((left, floor, 620, floor), _INK)
    pen.line((left, floor - height, 620, floor - height), _PALE)
    pen.text((20, floor - height - 8), str(frame.layers), _INK, small)
    pen.text((30, floor - 12), "0", _INK, small)
    for i, (depth, level, late) in enumerate(shown):
        _bar(pen, left + i * width, floor, width, height * depth / frame.layers, _colour(level))
        if late:
            pen.rectangle((left + i * width + 1, floor + 4, left + (i + 1) * width - 2, floor + 8), _RED)
    if frame.layer:
        _bar(pen, left + len(shown) * width, floor, width, height * frame.layer / frame.layers, _PALE)
    return np.asarray(image, np.uint8).copy()


def _bar(pen: Any, left: float, floor: int, width: float, height: float, colour: tuple[int, int, int]) -> None:
    pen.rectangle((left + 1, floor - height, left + width - 2, floor - 1), colour)


def _colour(level: float) -> tuple[int, int, int]:
    """From the lowest to the highest point."""
    red, green, blue = (round(low + (high - low) * level) for low, high in zip(_LOW, _HIGH, strict=True))
    return red, green, blue
