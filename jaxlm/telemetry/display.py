# SPDX-License-Identifier: Apache-2.0
"""What a person sees while a run goes on: a live block in a terminal, plain lines anywhere else.

    with make_display(log_every=10) as display:
        display.start(first_step=0, num_steps=1000)
        display.train(row)  # rows as in telemetry.jsonl
        display.finish()

A display never ends a run: when its stream breaks (a closed pipe, a lost terminal, a full disk)
it falls silent.  rich is imported only for a terminal.
"""

import math
import os
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Self, TextIO

from jaxlm.telemetry.readable import duration, fixed, number, percent, printable
from jaxlm.telemetry.stream import UnbreakableStream
from jaxlm.telemetry.textplot import bar, curve, rows_of
from jaxlm.telemetry.writer import Row

Piece = str | tuple[str, str]  # text, or (text, rich style)

REDRAW_S = 0.2  # between two drawings of the live block
PLAIN_PROGRESS_S = 10.0  # between two plain lines of one task
MAX_WIDTH = 100  # columns of a permanent line
BLOCK_WIDTH = 79  # columns of the live block: a terminal made narrower seldom has to break its lines
LOSS_SPAN = 20  # updates: the shown loss is a mean with weights exp(-age / LOSS_SPAN)


class Display:
    """Permanent lines, and the numbers of the run; subclasses say what shows in between."""

    width = MAX_WIDTH

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = UnbreakableStream(stream)
        self._clock = clock
        self._task: tuple[str, float] | None = None  # label, when it began
        self._num_steps = 0
        self._first = (0, 0.0)  # step and time at the first row of this process
        self._row: Row = {}
        self._loss = math.nan
        self._losses: list[float] = []  # smoothed
        self._bpbs: list[float] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def table(self, title: str, rows: Mapping[str, str]) -> None:
        """Names and values in two columns."""
        pad = max(map(len, rows), default=0) + 2
        self._print((title, "bold"))
        for name, value in rows.items():
            lines = textwrap.wrap(printable(value), max(20, self.width - pad - 2)) or [""]
            for label, line in zip([name, *[""] * len(lines)], lines, strict=False):
                self._print("  ", (label.ljust(pad), "dim"), line)
        self._print("")

    def note(self, text: str) -> None:
        """One thing that happened."""
        for line in textwrap.wrap(printable(text), self.width, subsequent_indent="  "):
            self._print(line)

    def progress(self, label: str, frac: float | None, detail: str = "") -> None:
        """How far a task is: frac in [0, 1], 1 ends it; None where its length is unknown."""
        now, is_new = self._clock(), self._task is None or self._task[0] != label
        if is_new:
            self._task = (label, now)
        assert self._task is not None
        spent = now - self._task[1]
        text = f"{label}  {printable(detail)}".rstrip()
        if frac is not None and frac >= 1:
            self._task = None
            self._task_ended(f"{text}  {duration(spent)}")
        else:
            left = f"  {duration(spent * (1 - frac) / frac)} left" if frac and spent > 1 else ""
            self._task_shown(text + left, frac, is_new)

    def start(self, first_step: int, num_steps: int) -> None:
        """Training begins: `first_step` updates stand, `num_steps` will at the end."""
        self._num_steps = num_steps
        self._first = (first_step, self._clock())

    def train(self, row: Row) -> None:
        """The row of one update."""
        loss = row["train/loss_nats"]
        if not self._row:  # time from here on: the first update includes the compilation
            self._first = (row["step"], self._clock())
            self._loss = loss
        self._row = row
        if math.isfinite(loss):
            seen = len(self._losses) + 1
            self._loss += (loss - self._loss) * max(1 / seen, 1 / LOSS_SPAN)
            self._losses.append(self._loss)
        self._update_shown()

    def eval(self, row: Row) -> None:
        """The row of one validation, as a permanent line."""
        bpb = row["eval/bpb"]
        change = f" ({bpb - self._bpbs[-1]:+.3f})" if self._bpbs else ""
        self._bpbs.append(bpb)
        others = [f"{n.partition('@')[2]} {fixed(v)}" for n, v in row.items() if n.startswith("eval/bpb@")]
        parts = [f"loss {fixed(row.get('eval/loss_nats'))}", f"accuracy {percent(row.get('eval/accuracy_frac'))}"]
        rest = "  ".join(parts + (others if len(others) > 1 else []))
        self._print(("validation", "bold"), f"  step {row['step']:,}  bpb ", (fixed(bpb), "bold green"), f"{change}  {rest}")

    def sample(self, prompt: str, text: str) -> None:
        """Text of the model, the prompt set off."""
        prompt, width = printable(prompt), self.width - 4
        left = len(prompt)  # characters of the prompt still to be shown
        for line in (prompt + printable(text)).split("\n"):
            for at in range(0, max(1, len(line)), width):
                chunk = line[at : at + width]
                self._print(("  | ", "dim"), (chunk[:left], "bold"), chunk[left:])
                left = max(0, left - len(chunk))
            left = max(0, left - 1)
        self._print("")

    def finish(self) -> None:
        """Training is over: draws its curve."""
        self.close()
        name, values = ("validation bpb", self._bpbs) if len(self._bpbs) > 2 else ("training loss", self._losses)
        picture = curve(values, width=min(self.width, 72), height=6)
        if picture:
            self._print((name, "bold"))
            for line in picture.split("\n"):
                self._print((line, "cyan"))
            self._print("")

    def close(self) -> None:
        """Leaves the terminal as it was."""

    def _print(self, *pieces: Piece) -> None:
        raise NotImplementedError

    def _task_shown(self, text: str, frac: float | None, is_new: bool) -> None:
        raise NotImplementedError

    def _task_ended(self, text: str) -> None:
        raise NotImplementedError

    def _update_shown(self) -> None:
        raise NotImplementedError

    def _step(self) -> str:
        return f"{self._row.get('step', self._first[0]):,}/{self._num_steps:,}"

    def _numbers(self) -> list[tuple[str, str]]:
        """(name, value) of what is worth watching, the most wanted first."""
        row, (first, began) = self._row, self._first
        spent = self._clock() - began
        done, left = row["step"] - first, self._num_steps - row["step"]
        shown = {
            "loss": fixed(self._loss),
            "bpb": fixed(self._bpbs[-1]) if self._bpbs else "-",
            "tok/s": number(row.get("perf/tokens_per_s")),
            "MFU": percent(row.get("perf/mfu_frac")),
            "ETA": duration(spent / done * left) if done else "-",
            "lr": number(row.get("optim/lr")),
            "grad": number(row.get("grad/norm_l2")),
            "elapsed": duration(spent),
        }
        return [(name, value) for name, value in shown.items() if value != "-"]


class PlainDisplay(Display):
    """One line every `log_every` updates: for files, pipes and notebooks."""

    def __init__(self, stream: TextIO, log_every: int = 10, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(stream, clock)
        self._log_every = log_every
        self._told = -math.inf  # when the running task last had a line

    def _print(self, *pieces: Piece) -> None:
        text = "".join(piece if isinstance(piece, str) else piece[0] for piece in pieces)
        self._stream.write(text.rstrip() + "\n")
        self._stream.flush()

    def _task_shown(self, text: str, frac: float | None, is_new: bool) -> None:
        if self._num_steps == 0 and (is_new or self._clock() - self._told >= PLAIN_PROGRESS_S):
            self._told = self._clock()
            self.note(text if frac is None else f"{frac:4.0%}  {text}")

    def _task_ended(self, text: str) -> None:
        if self._num_steps == 0:  # the end of an evaluation has a line of its own
            self.note(f"100%  {text}")

    def _update_shown(self) -> None:
        step = self._row["step"]
        if step % self._log_every == 0 or step == self._num_steps:
            pairs = [("step", self._step()), *self._numbers()]
            self._print("  ".join(map(" ".join, next(rows_of(pairs, self.width)))))


class LiveDisplay(Display):
    """A block at the bottom of the terminal, redrawn a few times per second."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        from rich.console import Console
        from rich.live import Live

        super().__init__(stream, clock)
        self._console = Console(file=self._stream, highlight=False)
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._task_line: tuple[str, float | None] | None = None
        self._drawn = -math.inf

    @property
    def width(self) -> int:  # type: ignore[override]
        return min(self._console.width - 1, MAX_WIDTH)

    def close(self) -> None:
        self._live.stop()
        self._task_line = None

    def _print(self, *pieces: Piece) -> None:
        from rich.text import Text

        self._console.print(Text.assemble(*pieces), soft_wrap=True)

    def _task_shown(self, text: str, frac: float | None, is_new: bool) -> None:
        self._task_line = (text, frac)
        self._draw(at_once=is_new)

    def _task_ended(self, text: str) -> None:
        self._task_line = None
        if self._num_steps == 0:
            self._print(("done  ", "green"), text)
        self._draw(at_once=True)

    def _update_shown(self) -> None:
        self._draw(at_once=False)

    def _draw(self, at_once: bool) -> None:
        now = self._clock()
        if not at_once and now - self._drawn < REDRAW_S:
            return
        self._drawn = now
        from rich.text import Text

        if not self._live.is_started:
            self._live.start()
            self._console.show_cursor(True)  # a killed process could not bring it back
        self._live.update(Text.assemble(*self._block(min(self.width, BLOCK_WIDTH)), no_wrap=True, overflow="crop"), refresh=True)

    def _block(self, width: int) -> Iterator[Piece]:
        if self._row:
            frac = self._row["step"] / self._num_steps
            tail = f" {self._step()} {frac:4.0%}"
            yield from zip(bar(frac, width - len(tail)), ("cyan", "dim"), strict=True)
            yield tail
            for line in rows_of(self._numbers(), width):
                yield "\n"
                for name, value in line:
                    yield from ((f"{name} ", "dim"), (value, "bold"), "  ")
        if self._task_line:
            text, frac = self._task_line
            yield "\n" if self._row else ""
            if frac is not None:
                yield from zip(bar(frac, max(10, width // 3)), ("cyan", "dim"), strict=True)
                yield f" {frac:4.0%} "
            yield text


def make_display(
    log_every: int = 10, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
) -> Display:
    """A LiveDisplay if the stream (standard output) is a terminal that can show one, else a PlainDisplay."""
    stream = stream or sys.stdout
    can_draw = "utf" in (stream.encoding or "").lower() and os.environ.get("TERM") != "dumb"
    if stream.isatty() and can_draw:
        return LiveDisplay(stream, clock)
    return PlainDisplay(stream, log_every, clock)
