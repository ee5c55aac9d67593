import pytest

from clone_rl.errors import BadValueError
from clone_rl.runtime import EmulatedActuator


def test_a_chip_starts_at_its_top_point():
    actuator = EmulatedActuator(8)
    assert (actuator.operating_point, actuator.changes) == (7, 0)


@pytest.mark.parametrize("points", [1, 2, 8])
def test_every_point_of_the_chip_can_be_set(points):
    actuator = EmulatedActuator(points)
    for point in range(points):
        actuator.set(point)
        assert actuator.operating_point == point


@pytest.mark.parametrize("point", [-1, 8, 100])
def test_a_point_that_the_chip_does_not_have_is_refused_and_changes_nothing(point):
    actuator = EmulatedActuator(8)
    actuator.set(3)
    with pytest.raises(BadValueError, match=rf"operating point {point}.*0 to 7"):
        actuator.set(point)
    assert (actuator.operating_point, actuator.changes) == (3, 1)


def test_only_real_changes_are_counted():
    actuator = EmulatedActuator(8)
    for point in (7, 7, 3, 3, 4, 7, 7):
        actuator.set(point)
    assert actuator.changes == 3
