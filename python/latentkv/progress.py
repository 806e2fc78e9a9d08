"""A line of progress with the time left, for work of minutes."""

from __future__ import annotations

import sys
import time


class Progress:
    """Counts steps of one stage on standard error; a line every few seconds, more quietly when it is not a terminal."""

    def __init__(self, stage: str, total: int) -> None:
        self._stage, self._total, self._done, self._kept = stage, total, 0, 0
        self._begun = self._shown = time.monotonic()

    def step(self, kept: bool = False) -> None:
        """One more is done; `kept` if it was before, which says nothing of how long the others take."""
        self._done += 1
        self._kept += kept
        now = time.monotonic()
        live = sys.stderr.isatty()
        if self._done < self._total and now - self._shown < (0.5 if live else 10):
            return
        self._shown = now
        left = (now - self._begun) / max(1, self._done - self._kept) * (self._total - self._done)
        text = f"{self._stage}: {self._done} of {self._total}, {left:.0f} s left"
        end = "\n" if self._done == self._total or not live else ""
        print(f"\r{text:<70}" if live else text, end=end or ("" if live else "\n"), file=sys.stderr, flush=True)
