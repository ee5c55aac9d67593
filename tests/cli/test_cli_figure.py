import sys

import numpy as np
import pytest

from clone_rl.errors import MissingExtraError
from clone_rl.evaluation.figure import draw_response

VOLTS = np.linspace(0.56, 1.0, 8)


def response(tokens, layers, seed=0):
    """Points with skipped layers, and tokens of which some come late."""
    rng = np.random.default_rng(seed)
    points = rng.integers(0, 8, (tokens, layers))
    for token in range(1, tokens):
        points[token, rng.integers(1, layers + 1) :] = -1
    emitted = np.cumsum(rng.uniform(0.5e-3, 2e-3, tokens))
    return points, emitted, 1e-3 * np.arange(1, tokens + 1) + 1e-3


def test_a_picture_is_a_png_of_some_size(tmp_path):
    points, emitted, due = response(30, 10)
    assert (points == -1).any()
    assert (emitted > due).any()
    path = tmp_path / "response.png"
    draw_response(path, points, VOLTS, emitted, due, "a title")
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG")
    assert len(content) > 5000


@pytest.mark.parametrize(("tokens", "layers"), [(1, 10), (2, 2), (60, 32)])
def test_short_and_deep_responses_can_be_drawn(tmp_path, tokens, layers):
    points, emitted, due = response(tokens, layers)
    draw_response(tmp_path / "p.png", points, VOLTS, emitted, due, "")
    assert (tmp_path / "p.png").stat().st_size > 5000


def test_exits_and_lateness_change_the_picture(tmp_path):
    points, emitted, due = response(12, 10)
    whole, early = np.maximum(points, 0), np.minimum(emitted, due - 1e-4)
    pictures = []
    for number, (p, e) in enumerate([(points, emitted), (whole, emitted), (points, early)]):
        draw_response(tmp_path / f"{number}.png", p, VOLTS, e, due, "")
        pictures.append((tmp_path / f"{number}.png").read_bytes())
    assert len(set(pictures)) == 3


def test_the_same_response_gives_the_same_bytes(tmp_path):
    points, emitted, due = response(8, 10)
    for name in ("a.png", "b.png"):
        draw_response(tmp_path / name, points, VOLTS, emitted, due, "")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_without_matplotlib_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"matplotlib.*clone-rl\[plot\]"):
        draw_response(tmp_path / "p.png", *response(3, 4)[:1], VOLTS, *response(3, 4)[1:], "")
    assert not list(tmp_path.iterdir())
