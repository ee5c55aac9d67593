import pytest
from hypothesis import given
from hypothesis import strategies as st

from clone_rl.errors import BadValueError, UnknownNameError
from clone_rl.hw_emulator import systolic_cycles


@pytest.mark.parametrize(
    ("m", "k", "n", "dataflow", "cycles"),
    [
        (1, 2048, 2048, "ws", 389119),
        (1, 2048, 2048, "os", 135039),
        (1, 2048, 8192, "ws", 1556479),
        (1, 2048, 8192, "os", 540159),
        (128, 2048, 2048, "ws", 909311),
        (128, 2048, 2048, "os", 540159),
    ],
)
def test_cycles_equal_scale_sim_on_a_32_by_32_array(m, k, n, dataflow, cycles):
    assert systolic_cycles(m, k, n, 32, 32, dataflow) == cycles


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 300), st.integers(1, 33), st.integers(1, 33))
def test_input_stationary_is_weight_stationary_of_the_transposed_product(m, k, n, rows, cols):
    assert systolic_cycles(m, k, n, rows, cols, "is") == systolic_cycles(n, k, m, rows, cols, "ws")


@given(
    st.integers(1, 300),
    st.integers(1, 300),
    st.integers(1, 300),
    st.integers(2, 33),
    st.integers(2, 33),
    st.sampled_from(["ws", "os", "is"]),
)
def test_no_array_beats_its_peak(m, k, n, rows, cols, dataflow):
    assert systolic_cycles(m, k, n, rows, cols, dataflow) * rows * cols >= m * k * n


@pytest.mark.parametrize("which", range(5))
def test_sizes_below_one_are_refused(which):
    sizes = [4] * 5
    sizes[which] = 0
    with pytest.raises(BadValueError, match="is 0"):
        systolic_cycles(*sizes)


def test_an_unknown_dataflow_is_refused():
    with pytest.raises(UnknownNameError, match="dataflow"):
        systolic_cycles(1, 1, 1, 1, 1, "wss")
