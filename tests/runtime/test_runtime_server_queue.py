"""Turns between clients."""

import itertools
import threading
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from clone_rl.runtime.server.fair_queue import FairQueue


@dataclass(eq=False)
class Request:
    client: str
    number: int = 0


def drained(queue):
    return [queue.take() for _ in range(len(queue))]


@given(st.lists(st.sampled_from("abcd"), max_size=40))
def test_clients_take_turns_and_each_keeps_its_order(clients):
    queue = FairQueue(100)
    for number, client in enumerate(clients):
        assert queue.put(Request(client, number)) is None
    found = drained(queue)
    assert sorted(r.number for r in found) == list(range(len(clients)))
    for client in "abcd":
        own = [r.number for r in found if r.client == client]
        assert own == sorted(own)
    # Between two requests of one client, every other client that still waits is served once.
    for at, request in enumerate(found):
        rest = [r.client for r in found[at + 1 :]]
        others = set(rest) - {request.client}
        between = list(itertools.takewhile(lambda c, own=request.client: c != own, rest))
        if request.client in rest:
            assert set(between) == others
            assert len(between) == len(others)


def test_a_newcomer_waits_for_one_request_of_a_flood_at_most():
    queue = FairQueue(100)
    for number in range(50):
        queue.put(Request("flood", number))
    queue.take()
    queue.put(Request("quiet"))
    assert [queue.take().client for _ in range(3)] == ["flood", "quiet", "flood"]


@given(st.integers(1, 6), st.lists(st.sampled_from("abc"), max_size=40))
def test_a_full_queue_stays_full_and_nobody_is_kept_out_by_another(limit, clients):
    queue = FairQueue(limit)
    lengths = dict.fromkeys("abc", 0)
    for client in clients:
        request = Request(client)
        lost = queue.put(request)
        lengths[client] += 1
        if lost:
            lengths[lost.client] -= 1
            assert sum(lengths.values()) == limit
            # Whoever loses had the most, and still has at least as many as the one who came.
            assert lengths[lost.client] == max(lengths.values()) or lost is request
            assert lengths[lost.client] >= lengths[client] or lost is request
        assert len(queue) == sum(lengths.values()) <= limit
    fair = limit // 3
    for client in "abc":
        assert lengths[client] >= min(fair, clients.count(client))


def test_who_leaves_is_forgotten():
    queue = FairQueue(3)
    requests = [Request("a", 1), Request("a", 2), Request("b", 3)]
    for request in requests:
        queue.put(request)
    assert queue.remove(requests[0])
    assert not queue.remove(requests[0])
    assert queue.remove(requests[2])
    assert not queue.remove(Request("c"))
    assert drained(queue) == [requests[1]]
    assert vars(queue)["_lines"] == {}


def test_taking_waits_for_a_request_and_ends_with_the_queue():
    queue, found = FairQueue(3), []
    thread = threading.Thread(target=lambda: found.extend(iter(queue.take, None)))
    thread.start()
    queue.put(Request("a", 1))
    while not found:
        pass
    queue.close()
    thread.join(5)
    assert not thread.is_alive()
    assert [r.number for r in found] == [1]
