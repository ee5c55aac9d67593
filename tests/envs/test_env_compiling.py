"""What people are told while code is compiled."""

from numba.core import event

from clone_rl.envs.compiling import Notice, compiled


def _fresh(module):
    def add(a, b):
        return a + b

    add.__module__ = module
    return compiled(add, cache=False)


def test_compiling_is_told_once():
    """Nothing for code of others, and nothing where code is there already."""
    told = []
    ours, again = _fresh("clone_rl.envs.some"), _fresh("clone_rl.agents.some")
    with event.install_listener("numba:compile", Notice(told.append)):
        for other in ("someone.else", None):
            _fresh(other)(1, 2)
        assert told == []
        assert ours(1, 2) == ours(2, 1) == 3
        assert again(1, 2) == 3
    assert told == ["compiling for this machine, once: up to a minute"]
