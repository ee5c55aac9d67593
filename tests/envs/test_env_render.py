from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest

from clone_rl.envs.render import _PALE, _PAPER, _RED, Frame, _colour, ansi, draw
from clone_rl.envs.single import LayerControlEnv
from clone_rl.errors import BadValueError

FRAME = Frame(
    chip="chip", scenario="scenario", voltage_v=0.6, top_v=1.0, frequency_hz=1e8, level=0.2, die_c=30.0, throttle_c=85.0,
    token=60, tokens=80, layer=4, layers=10, done=False, slack_s=1e-3, target_s=2e-3, energy_j=1e-4, busy=False,
    emitted=tuple((10 if i % 2 else 5, i / 60, i == 59) for i in range(60)),
)  # fmt: skip
FLOOR, LEFT, WIDTH = 338, 52, 568 / 48


def at_slot(image, slot, above=5):
    """The colour in the middle of a token's place, so many pixels above the floor of the strip."""
    return tuple(image[FLOOR - above, round(LEFT + (slot + 0.5) * WIDTH)].tolist())


def test_the_token_in_flight_has_a_place_of_its_own():
    image = draw(FRAME)
    assert at_slot(image, 47) == _PALE
    assert at_slot(image, 46) == _colour(59 / 60)
    assert at_slot(image, 46, -6) == _RED
    assert at_slot(image, 45, -6) == _PAPER
    assert at_slot(image, 0) == _colour(13 / 60)


def test_between_two_tokens_every_place_is_taken():
    image = draw(replace(FRAME, layer=0))
    assert at_slot(image, 47) == _colour(59 / 60)
    assert at_slot(image, 0) == _colour(12 / 60)


def test_the_first_tokens_begin_at_the_left():
    image = draw(replace(FRAME, emitted=FRAME.emitted[:3]))
    assert at_slot(image, 0) == _colour(0)
    assert at_slot(image, 3) == _PALE
    assert at_slot(image, 4) == _PAPER


def test_a_depth_is_a_height():
    image = draw(FRAME)
    assert at_slot(image, 46, 145) == _colour(59 / 60)  # all ten layers
    assert at_slot(image, 45, 70) == _colour(58 / 60)  # five of them
    assert at_slot(image, 45, 80) == _PAPER
    assert at_slot(image, 47, 55) == _PALE  # four so far
    assert at_slot(image, 47, 65) == _PAPER


def test_the_lowest_voltage_is_not_none():
    image = draw(replace(FRAME, voltage_v=0.5, level=0.0))
    assert tuple(image[85, 210 + 200]) == _colour(0.0)
    assert tuple(image[85, 210 + 210]) == _PALE


def test_names_are_shown_whole():
    for name in ("short", "a name that somebody has written out in full and which would not fit in large letters " * 2):
        image = draw(replace(FRAME, scenario=name))
        assert (image[:40, 621:] == 255).all(), name
        assert (image[:40, 20:300] < 100).any()


def test_a_response_that_has_ended_owes_nothing(trace_folder):
    env = gym.make("clone_rl/LayerControl-v0", traces=trace_folder, render_mode="ansi")
    env.reset(seed=0)
    assert "due in +" in env.render()
    done = False
    while not done:
        *_, done, _, info = env.step(7)
    lines = env.render().splitlines()
    assert lines[1].startswith(f"{info['figures']['tokens']} tokens, ended | ")
    assert lines[2] == f"nothing is due [{'':20}]"
    image = draw(replace(FRAME, done=True))
    assert not (image[137, 210:410] != _PALE).any()
    assert not (image[137, 420:620] != _PALE).any()


def test_text_shows_the_last_tokens():
    depth = ansi(FRAME).splitlines()[3]
    assert len(depth) == len("depth ||") + 48
    assert depth.endswith("▄█|")


def test_there_is_nothing_to_show_before_the_first_request(trace_folder):
    env = LayerControlEnv(traces=trace_folder, render_mode="rgb_array")
    with pytest.raises(BadValueError, match="call reset"):
        env.render()
    env.reset(seed=0)
    assert env.render().shape == (360, 640, 3)
    assert env.render().dtype == np.uint8
