# SPDX-License-Identifier: Apache-2.0
"""What a person sees while a run goes on: a live block in a terminal, plain lines anywhere else.

    with make_display(log_every=10) as display:
        display.start(first_step=0, num_steps=1000)
        display.train(row)  # rows as in telemetry.jsonl
        display.finish()

A display never ends a run: when its stream breaks (a closed pipe, a lost terminal, a full disk)
it falls silent.
"""

import math
import os
import sys
import textwrap
import time
from collections.abc import Callable, Mapping
from typing import Self, TextIO

from jaxlm.telemetry.readable import duration, fixed, number, percent, printable
from jaxlm.telemetry.stream import UnbreakableStream
from jaxlm.telemetry.textplot import curve, rows_of
from jaxlm.telemetry.writer import Row

Piece = str | tuple[str, str]  # text, or (text, rich style)

PLAIN_PROGRESS_S = 10.0  # between two plain lines of one task
MAX_WIDTH = 100  # columns
LOSS_SPAN = 20  # updates


class Display:
    """Permanent lines, and the numbers of the run; subclasses say what shows in between."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = UnbreakableStream(stream)
        self._clock = clock
        self._task = ("", 0.0)  # label ("" for none), when it began
        self._num_steps = 0
        self._first = (0, 0.0)  # step and time at the first row of this process
        self._row: Row = {}
        self._losses: list[float] = []  # smoothed: mean of all, then of about the last LOSS_SPAN
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
        is_new = label != self._task[0]
        if is_new:
            self._task = (label, self._clock())
        spent = self._clock() - self._task[1]
        text = f"{label}  {printable(detail)}".rstrip()
        if frac is not None and frac >= 1:
            self._task = ("", 0.0)
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
        if not self._row:  # time from here on: the first update includes the compilation
            self._first = (row["step"], self._clock())
        self._row, loss = row, row["train/loss_nats"]
        if math.isfinite(loss):
            before = self._losses[-1] if self._losses else 0.0
            weight = max(1 / (len(self._losses) + 1), 1 / LOSS_SPAN)
            self._losses.append(before + weight * (loss - before))
        self._update_shown()

    def eval(self, row: Row) -> None:
        """The row of one validation, as a permanent line."""
        bpb = row["eval/bpb"]
        change = f" ({bpb - self._bpbs[-1]:+.3f})" if self._bpbs else ""
        self._bpbs.append(bpb)
        rest = f"  loss {fixed(row.get('eval/loss_nats'))}"
        rest += f"  accuracy {percent(row.get('eval/accuracy_frac'))}"
        by_corpus = {n.partition("@")[2]: v for n, v in row.items() if n.startswith("eval/bpb@")}
        if len(by_corpus) > 1:
            rest += "".join(f"  {corpus} {fixed(value)}" for corpus, value in by_corpus.items())
        self._print(
            ("validation", "bold"),
            f"  step {row['step']:,}  bpb ",
            (fixed(bpb), "bold green"),
            change,
            rest,
        )

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
        name, values = (
            ("validation bpb", self._bpbs)
            if len(self._bpbs) > 2
            else ("training loss", self._losses)
        )
        picture = curve(values, width=min(self.width, 72), height=6)
        if picture:
            self._print((name, "bold"))
            for line in picture.split("\n"):
                self._print((line, "cyan"))
            self._print("")

    def close(self) -> None:
        """Leaves the terminal as it was."""

    @property
    def width(self) -> int:
        """Columns of a permanent line."""
        return MAX_WIDTH

    def _print(self, *pieces: Piece) -> None:
        raise NotImplementedError

    # what shows between the permanent lines

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
            "loss": fixed(self._losses[-1] if self._losses else math.nan),
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

    def __init__(
        self, stream: TextIO, log_every: int = 10, clock: Callable[[], float] = time.monotonic
    ) -> None:
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


def make_display(
    log_every: int = 10, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
) -> Display:
    """A LiveDisplay where the stream (standard output) is a capable terminal, else plain lines."""
    stream = stream or sys.stdout
    can_draw = "utf" in (stream.encoding or "").lower() and os.environ.get("TERM") != "dumb"
    if stream.isatty() and can_draw:
        from jaxlm.telemetry.live import LiveDisplay  # rich takes 0.1 s to import

        return LiveDisplay(stream, clock)
    return PlainDisplay(stream, log_every, clock)
