# SPDX-License-Identifier: Apache-2.0
"""The terminal's display: a block under the permanent lines, redrawn a few times per second."""

import math
import time
from collections.abc import Callable, Iterator
from typing import TextIO, cast

from rich.console import Console
from rich.live import Live
from rich.text import Text

from jaxlm.telemetry.display import MAX_WIDTH, Display, Piece
from jaxlm.telemetry.textplot import bar, rows_of

REDRAW_S = 0.25  # between two drawings; one takes 0.4 ms
BLOCK_WIDTH = 79  # columns: so a terminal that is made narrower seldom has to break a line


class LiveDisplay(Display):
    """See the module; rich keeps stray output of other code above the block."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(stream, clock)
        self._console = Console(file=cast(TextIO, self._stream), highlight=False)
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._task_line: tuple[str, float | None] | None = None
        self._drawn = -math.inf  # when

    @property
    def width(self) -> int:
        return min(self._console.width - 1, MAX_WIDTH)

    def start(self, first_step: int, num_steps: int) -> None:
        super().start(first_step, num_steps)
        self._task_line = None

    def close(self) -> None:
        self._live.stop()

    def _print(self, *pieces: Piece) -> None:
        self._console.print(Text.assemble(*pieces))

    def _task_shown(self, text: str, frac: float | None, is_new: bool) -> None:
        self._task_line = (text, frac)
        self._draw(at_once=is_new)

    def _task_ended(self, text: str) -> None:
        self._task_line = None
        if self._num_steps == 0:  # the end of an evaluation has a line of its own
            self._print(("done  ", "green"), text)
        self._draw(at_once=True)

    def _update_shown(self) -> None:
        self._draw(at_once=False)

    def _draw(self, at_once: bool) -> None:
        now = self._clock()
        if not at_once and now - self._drawn < REDRAW_S:
            return
        self._drawn = now
        if not self._live.is_started:
            self._live.start()
            self._console.show_cursor(True)  # a killed process could not bring it back
        pieces = self._block(min(self.width, BLOCK_WIDTH))
        self._live.update(Text.assemble(*pieces, no_wrap=True, overflow="crop"), refresh=True)

    def _block(self, width: int) -> Iterator[Piece]:
        if self._row:
            frac = self._row["step"] / self._num_steps
            tail = f" {self._step()} {frac:4.0%}"
            yield from _bar(frac, width - len(tail))
            yield tail
            for pairs in rows_of(self._numbers(), width):
                yield "\n"
                for name, value in pairs:
                    yield from ((f"{name} ", "dim"), (value, "bold"), "  ")
        if self._task_line:
            text, task_frac = self._task_line
            yield "\n" if self._row else ""
            if task_frac is not None:
                yield from _bar(task_frac, width // 3)
                yield f" {task_frac:4.0%} "
            yield text


def _bar(frac: float, width: int) -> Iterator[Piece]:
    return zip(bar(frac, width), ("cyan", "dim"), strict=True)
