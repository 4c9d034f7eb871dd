"""Where a process spends its time, and its memory, looked at every few milliseconds."""

from __future__ import annotations

import linecache
import sys
import threading
import time
from collections import Counter
from pathlib import Path

INTERVAL = 0.003
WAITING = "waiting"
# The innermost frame that one of these names says what a thread does; functions go before files.
FUNCTIONS = {
    "at_least_float32": "converting",
    "align_and_score_numba": "score",
    "score_plan": "score",
    "hinge_cost": "cost",
    "align_projected": "plan",
    "project_each": "projection",
    "project": "projection",
}
FILES = {
    "threading": WAITING,
    "thread": WAITING,
    "_base": WAITING,
    "queue": WAITING,
    "selectors": WAITING,
    "store_": "reading",
    "stored_": "reading",
    "store": "reading",
    "cpu": "cost and plan",
    "published_form": "cost and plan",
}
CONVERSIONS = (".to(", ".float(", ".astype(")


class Sampler(threading.Thread):
    """Sample all threads of this process while the block runs.

    A sample stands for the time since the one before, so that compiled code, which may hold the
    interpreter for long, counts in full.

    Attributes:
        seconds: how long the block took.
        main: seconds of the thread that opened the block, by what it did.
        beside: seconds of the other threads, by what they did, waiting left out.
        anonymous_bytes: most memory that no file backs.
    """

    def __init__(self):
        super().__init__(daemon=True)
        self.main, self.beside = Counter(), Counter()
        self.seconds, self.anonymous_bytes = 0.0, 0
        self._stopped, self._watched = threading.Event(), threading.get_ident()

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self._stopped.set()
        self.join()

    def run(self):
        begin = last = time.perf_counter()
        while not self._stopped.wait(INTERVAL):
            now = time.perf_counter()
            self._sample(now - last)
            last = now
        self.seconds = time.perf_counter() - begin

    def _sample(self, elapsed):
        for thread, frame in sys._current_frames().items():
            if thread == self._watched:
                self.main[describe(frame)] += elapsed
            elif thread != self.ident and (doing := describe(frame)) != WAITING:
                self.beside[doing] += elapsed
        self.anonymous_bytes = max(self.anonymous_bytes, memory("RssAnon"))


def describe(frame) -> str:
    """Say what a stack is busy with."""
    while frame is not None:
        code = frame.f_code
        if code.co_name in FUNCTIONS:
            return FUNCTIONS[code.co_name]
        stem = Path(code.co_filename).stem
        found = next((FILES[start] for start in FILES if stem.startswith(start)), None)
        if found is not None:
            line = linecache.getline(code.co_filename, frame.f_lineno)
            converting = found != WAITING and any(name in line for name in CONVERSIONS)
            return "converting" if converting else found
        frame = frame.f_back
    return "bookkeeping"


def memory(field: str) -> int:
    """Return a field of `/proc/self/status` in bytes, for example VmHWM; 0 where it is missing.

    VmHWM starts anew with a program, where `ru_maxrss` begins with what the parent had.
    """
    path = Path("/proc/self/status")
    lines = path.read_text().splitlines() if path.is_file() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(field)), 0)
