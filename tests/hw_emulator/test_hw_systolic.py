import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clone_rl.errors import BadValueError, UnknownNameError
from clone_rl.hw_emulator import Chip, Emulator, Workload, systolic_cycles
from clone_rl.hw_emulator.cost import work_parts
from clone_rl.hw_emulator.emulator import HEAD, LAYER

SRAM = Chip.load("asic28-sram")
FORMS = ("ws", "os", "is")

small = st.integers(1, 300)
sides = st.integers(1, 33)


@pytest.mark.parametrize(
    ("m", "k", "n", "side", "dataflow", "cycles"),
    [
        (1, 2048, 2048, 32, "ws", 389119),
        (1, 2048, 2048, 32, "os", 135039),
        (1, 2048, 8192, 32, "ws", 1556479),
        (1, 2048, 8192, 32, "os", 540159),
        (128, 2048, 2048, 32, "ws", 909311),
        (128, 2048, 2048, 32, "os", 540159),
        (33, 65, 97, 32, "ws", 1523),
        (33, 65, 97, 32, "os", 1015),
        (100, 100, 100, 16, "ws", 7153),
        (100, 100, 100, 16, "os", 6369),
        (1, 512, 512, 128, "ws", 6127),
        (1, 512, 512, 128, "os", 3063),
        (16, 256, 256, 32, "is", 2799),
        (8, 2048, 512, 32, "is", 38783),
        (1, 896, 896, 32, "is", 27719),
    ],
)
def test_cycles_equal_what_scale_sim_counts(m, k, n, side, dataflow, cycles):
    assert systolic_cycles(m, k, n, side, side, dataflow) == cycles


@given(small, small, small, sides, sides)
def test_input_stationary_is_weight_stationary_of_the_transposed_product(m, k, n, rows, cols):
    assert systolic_cycles(m, k, n, rows, cols, "is") == systolic_cycles(n, k, m, rows, cols, "ws")


@given(small, small, small, st.integers(2, 33), st.integers(2, 33), st.sampled_from(FORMS))
def test_no_array_beats_its_peak(m, k, n, rows, cols, dataflow):
    assert systolic_cycles(m, k, n, rows, cols, dataflow) * rows * cols >= m * k * n


@given(small, small, small, st.integers(0, 2), st.integers(1, 50), sides, sides, st.sampled_from(FORMS))
def test_a_larger_product_never_takes_fewer_cycles(m, k, n, which, more, rows, cols, dataflow):
    larger = [m, k, n]
    larger[which] += more
    assert systolic_cycles(*larger, rows, cols, dataflow) >= systolic_cycles(m, k, n, rows, cols, dataflow)


@pytest.mark.parametrize("which", range(5))
def test_sizes_below_one_are_refused(which):
    sizes = [4] * 5
    sizes[which] = 0
    with pytest.raises(BadValueError, match=f"{('m', 'k', 'n', 'rows', 'cols')[which]} is 0"):
        systolic_cycles(*sizes)


def test_an_unknown_dataflow_is_refused_with_the_known_ones():
    with pytest.raises(UnknownNameError, match="did you mean 'ws'"):
        systolic_cycles(1, 1, 1, 1, 1, "wss")


def array_cycles(emulator, piece, rows):
    """Cycles of a piece of work if the array alone counts: no vector mode, no attention, no limit of SRAM."""
    chip, work = emulator.constants[0].copy(), emulator.work[piece].copy()
    chip["sram_bytes_per_cycle"] = np.inf
    work["vector_cycles_per_row"], work["vector_cycles_per_score"] = np.inf, 0.0
    return work_parts(chip, work, float(rows), 0.0, True)[1]


def on_array(dataflow, tiles, rows, columns, **sizes):
    compute = dataclasses.replace(SRAM.compute, dataflow=dataflow, tiles=tiles, array_rows=rows, array_columns=columns)
    sizes = {"layers": 1, "hidden_size": 24, "heads": 3, "kv_heads": 1, "ff_size": 50, **sizes}
    return Emulator(dataclasses.replace(SRAM, compute=compute), Workload(**sizes))


@given(st.sampled_from(FORMS), st.integers(1, 5), sides, sides, small, st.integers(1, 40), st.integers(1, 200), st.booleans())
def test_a_layer_on_the_array_takes_the_cycles_of_its_products_with_columns_split_over_tiles(
    dataflow, tiles, rows, columns, tokens, width, ff_size, gated
):
    emulator = on_array(dataflow, tiles, rows, columns, hidden_size=3 * width, ff_size=ff_size, gated=gated)
    expected = sum(
        systolic_cycles(tokens, k, -(-n // tiles), rows, columns, dataflow) for k, n in emulator.workload.products.values()
    )
    assert array_cycles(emulator, LAYER, tokens) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dataflow", FORMS)
def test_formats_that_pack_half_as_many_products_take_twice_the_cycles(dataflow):
    emulator = on_array(dataflow, 2, 8, 8, vocab_size=300)
    assert emulator.chip.compute.macs_per_pe["int8"] == 0.5
    expected = 2 * systolic_cycles(17, 24, 150, 8, 8, dataflow)
    assert array_cycles(emulator, HEAD, 17) == pytest.approx(expected)


@pytest.mark.parametrize("dataflow", ["ws", "os", "is"])
def test_the_dataflow_may_be_written_in_capitals(dataflow):
    assert systolic_cycles(5, 70, 33, 16, 8, dataflow.upper()) == systolic_cycles(5, 70, 33, 16, 8, dataflow)


def test_fractional_sizes_are_refused():
    with pytest.raises(BadValueError, match=r"m is 1\.5"):
        systolic_cycles(1.5, 8, 8, 4, 4, "ws")
