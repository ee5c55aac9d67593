"""Who is next: clients take turns, and each client's own requests keep their order."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from typing import Generic, Protocol, TypeVar


class Waiting(Protocol):
    """A request that waits."""

    client: str


T = TypeVar("T", bound=Waiting)


class FairQueue(Generic[T]):
    """Round robin between clients, first come first served within one; bounded.

    Where it is full, a client with fewer requests than the one with most takes the place of that one's newest: nobody is
    kept out by another's flood.

    Args:
        limit: Most requests.

    >>> from types import SimpleNamespace as Request
    >>> queue = FairQueue(3)
    >>> requests = [Request(client=c, number=n) for c, n in (("a", 1), ("a", 2), ("a", 3), ("b", 4))]
    >>> [lost.number if (lost := queue.put(request)) else None for request in requests]
    [None, None, None, 3]
    >>> [queue.take().number for _ in range(3)]
    [1, 4, 2]
    """

    def __init__(self, limit: int) -> None:
        self.limit, self._size, self._closed = limit, 0, False
        self._lines: OrderedDict[str, deque[T]] = OrderedDict()
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return self._size

    def put(self, request: T) -> T | None:
        """Queue a request; returns the one that there is no room for: none, this one, or another that gives way."""
        with self._changed:
            lost = None
            if self._size >= self.limit:
                longest = max(self._lines, key=lambda client: len(self._lines[client]))
                if len(self._lines[longest]) <= len(self._lines.get(request.client, ())) + 1:
                    return request
                lost = self._lines[longest].pop()
                self._size -= 1
            self._lines.setdefault(request.client, deque()).append(request)
            self._size += 1
            self._changed.notify()
            return lost

    def take(self) -> T | None:
        """Wait for the next request; None once the queue is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._size or self._closed)
            if self._closed:
                return None
            client, line = self._lines.popitem(last=False)
            request = line.popleft()
            if line:
                self._lines[client] = line  # to the end: the others first
            self._size -= 1
            return request

    def remove(self, request: T) -> bool:
        """Take a request out that nobody waits for any more; whether it was there."""
        with self._changed:
            line = self._lines.get(request.client, deque())
            if request not in line:
                return False
            line.remove(request)
            if not line:
                del self._lines[request.client]
            self._size -= 1
            return True

    def close(self) -> None:
        """Let those who wait for requests go."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
