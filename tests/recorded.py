"""A source of tokens that has them from a trace set."""

import dataclasses

import numpy as np

from clone_rl.envs.trace import PER_TOKEN, blank_trace


class Recorded:
    """A ``TokenSource`` that plays a trace set back; ``flaw`` is added to what leaving costs in agreement.

    It knows how long a response will be, or else, as a model, how long at most.
    """

    kv = "propagate"

    def __init__(self, traces, flaw=0.0, longest=0):
        self.traces, self.layers, self.probe_dots, self.flaw = traces, traces.layers, traces.probe_dots, flaw
        self.longest = longest
        self.ended = False
        self.asked = []

    def __len__(self):
        return len(self.traces.split)

    def start(self, document, seed):
        self.asked.append((document, seed))
        rows = slice(*self.traces.offset[document : document + 2])
        self.left, self.ended = rows.stop - rows.start, False
        trace = blank_trace(self.layers, int(self.traces.prompt_tokens[document]), max(self.left, self.longest))
        columns = {name: np.array(getattr(self.traces, name)[rows], np.float32) for name in PER_TOKEN}
        for name, column in columns.items():
            padding = np.zeros((max(0, self.longest - len(column)), *column.shape[1:]), np.float32)
            columns[name] = np.concatenate([column, padding])
        columns["agree"] = columns["agree"] * (1 - self.flaw)
        trace.card["expected_tokens"] = float(self.traces.mean_tokens()[self.traces.kind[document]])
        return dataclasses.replace(trace, **columns)

    def _emit(self):
        self.left -= 1
        self.ended = self.left == 0

    def run(self, layer):
        if layer == self.layers - 1:
            self._emit()

    def leave(self, _depth):
        self._emit()

    def close(self):
        pass
