"""A picture as a PNG file, which appears complete or not at all."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

from clone_rl.files import replacing


def write_picture(path: Path, figure: Any) -> None:
    """Write a matplotlib figure.

    Raises:
        WriteError: The disk is full, or there is no permission.
    """
    # Drawn in memory: what an image library says of a full disk does not always name the disk.
    drawn = BytesIO()
    figure.savefig(drawn, format="png", dpi=110)
    with replacing(path) as aside:
        aside.write_bytes(drawn.getvalue())
