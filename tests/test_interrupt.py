import gc
import signal
import subprocess
import sys
import threading

import pytest

from clone_rl.bars import Bar
from clone_rl.interrupt import postponing, stop_here


def interrupt():
    signal.raise_signal(signal.SIGINT)


def test_an_interrupt_waits_for_a_place_to_stop():
    seen = []
    with pytest.raises(KeyboardInterrupt), postponing():
        interrupt()
        seen.append("went on")
        stop_here()
        seen.append("too far")
    assert seen == ["went on"]
    stop_here()


def test_or_for_the_end_of_the_outermost_block():
    seen = []
    with pytest.raises(KeyboardInterrupt), postponing():
        with postponing():
            interrupt()
        seen.append("went on")
    assert seen == ["went on"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_interrupt_waits_for_nothing():
    seen = []
    with pytest.raises(KeyboardInterrupt), postponing():
        interrupt()
        seen.append("went on")
        interrupt()
        seen.append("too far")
    assert seen == ["went on"]


def test_an_error_is_not_hidden_by_an_interrupt():
    with pytest.raises(ZeroDivisionError), postponing():
        interrupt()
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    stop_here()


def test_a_handler_of_the_host_program_stays():
    def own(*_):
        seen.append("own")

    seen, before = [], signal.signal(signal.SIGINT, own)
    try:
        with postponing():
            interrupt()
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == ["own"]


def test_threads_have_no_signals_to_postpone():
    done = []

    def work():
        with postponing():
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [True]


def test_a_bar_is_built_whole_or_not_at_all(capsys, monkeypatch):
    # As when Ctrl-C comes inside of tqdm's own constructor, of which tqdm's destructor then prints a traceback.
    def interrupted(*_, **__):
        interrupt()
        return 0

    monkeypatch.setattr("tqdm.std.tqdm._get_free_pos", interrupted)
    unraisable = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    with pytest.raises(KeyboardInterrupt):
        Bar(total=3)
    gc.collect()
    assert unraisable == []


def test_a_bar_stops_between_two_steps():
    seen = []
    with pytest.raises(KeyboardInterrupt), postponing():
        for item in Bar(range(5), disable=True):
            if item == 2:
                interrupt()
            seen.append(item)
    assert seen == [0, 1, 2]
    with pytest.raises(KeyboardInterrupt), postponing(), Bar(total=2, disable=True) as bar:
        interrupt()
        bar.update()


LOST = """
import signal, sys, time
from clone_rl.interrupt import install_again
class Fragile:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)
install_again()
try:
    Fragile()
    time.sleep(5)
    print("lost")
except KeyboardInterrupt:
    print("came again")
"""


def test_an_interrupt_that_python_would_only_print_comes_again():
    done = subprocess.run([sys.executable, "-c", LOST], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("came again\n", "")
