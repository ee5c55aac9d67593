"""What the benchmarks share: CPU time of jobs that take turns, and the machine that they ran on."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clone_rl.errors import BadValueError

_FEWEST = 5  # repetitions, whatever time they take


def check_seconds(seconds: float, longest: float) -> None:
    """Refuse a measurement that takes no time, or too much.

    Raises:
        BadValueError: Not above 0, or more than ``longest``.
    """
    if not 0 < seconds <= longest:
        raise BadValueError(f"seconds is {seconds}", f"more than 0, at most {longest:g}")


@contextmanager
def one_thread() -> Iterator[None]:
    """Models this small lose more to synchronising threads than they gain, and CPU time would count the waiting."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    import numba
    import numpy

    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "numba": numba.__version__,
        "numpy": numpy.__version__,
    }


def per_cpu_second(work: Callable[[], int], seconds: float) -> float:
    """Units of work per CPU second of this process.

    Args:
        work: Does some units and returns how many; called once more before the clock starts, which compiles it.
        seconds: CPU time to spend at least.
    """
    work()
    done, spent, start = 0, 0.0, time.process_time()
    while not spent or spent < seconds:
        done += work()
        spent = time.process_time() - start
    return done / spent


def interleaved(jobs: Mapping[str, Callable[[], Any]], seconds: float) -> dict[str, list[float]]:
    """CPU seconds of each job, one after the other and over again, so that all see the machine in the same moods.

    Args:
        jobs: By name; each is called once more before the clock starts.
        seconds: CPU time to spend at least.
    """
    for job in jobs.values():
        job()
    times: dict[str, list[float]] = {name: [] for name in jobs}
    begin = time.process_time()
    while len(next(iter(times.values()))) < _FEWEST or time.process_time() - begin < seconds:
        for name, job in jobs.items():
            start = time.process_time()
            job()
            times[name].append(time.process_time() - start)
    return times
