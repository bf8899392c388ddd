# SPDX-License-Identifier: Apache-2.0
"""Plain lines are plain; the live block is cheap to import, fits, and leaves the terminal whole."""

import io
import os
import pty
import re
import subprocess
import sys
import threading
import unicodedata

import pytest

from jaxlm.telemetry.display import MAX_WIDTH, PlainDisplay, make_display

EVIL = "\x1b[2J\x1b]0;owned\x07[bold red]x[/bold red]\r\u202eabc\x9b31m"


def _row(step, loss=2.0, **others):
    return {"kind": "train", "step": step, "train/loss_nats": loss, "perf/tokens_per_s": 11812.0,
            "perf/mfu_frac": 0.46, "optim/lr": 3e-4, "grad/norm_l2": 0.61} | others  # fmt: skip


def _eval(step, bpb):
    row = {"kind": "eval", "step": step, "eval/bpb": bpb, "eval/loss_nats": 2.5}
    return row | {"eval/accuracy_frac": 0.431, "eval/bpb@web": bpb, "eval/bpb@code": bpb}


def _whole_run(display, num_steps=40):
    display.table("tiny " * 3, {"parameters": "2,620,416 " * 30, "mesh": EVIL})
    for i in range(5):
        display.progress("tokenizer", i / 4, EVIL)
    display.progress("reading", None, "3 files")
    display.note("note " * 60 + EVIL)
    display.start(0, num_steps)
    for step in range(1, num_steps + 1):
        display.train(_row(step, loss=10 / step))
        if step % 10 == 0:
            display.progress("validation", 0.5)
            display.progress("validation", 1.0)
            display.eval(_eval(step, 10 / step))
    display.sample("import ", EVIL + "word " * 60)
    display.finish()


class _Terminal:
    """A pseudo-terminal: `stream` to write to, `text()` for what arrived."""

    def __init__(self):
        self._master, slave = pty.openpty()
        self.stream = open(slave, "w", encoding="utf-8")
        self._bytes = b""
        self._thread = threading.Thread(target=self._drain, daemon=True)
        self._thread.start()

    def _drain(self):
        try:
            while data := os.read(self._master, 65536):
                self._bytes += data
        except OSError:  # the other end is closed
            return

    def text(self):
        self.stream.close()
        self._thread.join(10)
        os.close(self._master)
        return self._bytes.decode()


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "30")
    return _Terminal()


def test_plain_output_has_short_lines_and_no_control_characters():
    stream = io.StringIO()
    _whole_run(PlainDisplay(stream, log_every=10))
    lines = stream.getvalue().split("\n")
    assert max(map(len, lines)) <= MAX_WIDTH
    assert not [c for c in "".join(lines) if unicodedata.category(c)[0] == "C"]
    assert "[bold red]x[/bold red]" in stream.getvalue()


@pytest.mark.parametrize(("log_every", "want"), [(10, [10, 20, 25]), (7, [7, 14, 21, 25])])
def test_plain_lines_come_every_log_every_updates_and_after_the_last(log_every, want):
    stream = io.StringIO()
    display = PlainDisplay(stream, log_every)
    display.start(0, 25)
    for step in range(1, 26):
        display.train(_row(step))
        seen = [int(s) for s in re.findall(r"^step (\d+)/25", stream.getvalue(), re.MULTILINE)]
        assert seen == [s for s in want if s <= step], "each line at once, not at the end"


def test_the_time_left_is_that_of_the_updates_after_the_first():
    """The first update compiles for 100 s; the others take 2 s; resumed at 50 of 100."""
    now, stream = [0.0], io.StringIO()
    display = PlainDisplay(stream, log_every=1, clock=lambda: now[0])
    display.start(50, 100)
    for step, at in ((51, 100.0), (52, 102.0), (53, 104.0)):
        now[0] = at
        display.train(_row(step))
    assert "ETA" not in stream.getvalue().split("\n")[0]
    assert "ETA 1m34s" in stream.getvalue().split("\n")[2]


def test_the_shown_loss_is_smooth_and_survives_what_is_not_finite():
    stream = io.StringIO()
    display = PlainDisplay(stream, log_every=1)
    display.start(0, 5)
    for step, loss in enumerate((float("nan"), 4.0, 2.0, float("inf"), 3.0), start=1):
        display.train(_row(step, loss))
    assert re.findall(r"loss (\S+)", stream.getvalue()) == [
        "nan",
        "4.000",
        "3.000",
        "3.000",
        "3.000",
    ]


def test_numbers_that_a_run_lacks_are_left_out():
    stream = io.StringIO()
    display = PlainDisplay(stream, log_every=1)
    display.start(0, 2)
    display.train({"kind": "train", "step": 1, "train/loss_nats": 2.0, "perf/mfu_frac": None})
    assert stream.getvalue() == "step 1/2  loss 2.000  elapsed 0.0s\n"


def test_an_evaluation_is_a_line_with_its_change():
    stream = io.StringIO()
    display = PlainDisplay(stream)
    display.eval(_eval(10, 2.0))
    display.eval(_eval(20, 1.75))
    first, second = stream.getvalue().splitlines()
    assert (
        first == "validation  step 10  bpb 2.000  loss 2.500  accuracy 43.1%  web 2.000  code 2.000"
    )
    assert "bpb 1.750 (-0.250)" in second


def test_a_terminal_gets_the_block_and_anything_else_plain_lines(terminal, monkeypatch):
    assert type(make_display(stream=terminal.stream)).__name__ == "LiveDisplay"
    assert type(make_display(stream=io.StringIO())) is PlainDisplay
    monkeypatch.setenv("TERM", "dumb")
    assert type(make_display(stream=terminal.stream)) is PlainDisplay
    terminal.text()


@pytest.mark.parametrize("columns", [20, 60, 80, 200])
def test_the_terminal_is_steered_by_nothing_that_the_model_wrote(terminal, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    with make_display(stream=terminal.stream) as display:
        _whole_run(display)
    text = terminal.text()
    steering = set(re.findall(r"\x1b\[[0-9;?]*([A-Za-z])", text))
    assert steering <= {"m", "A", "K", "h", "l"}, "colour, up, erase, cursor"
    rest = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    assert {c for c in rest if unicodedata.category(c)[0] == "C"} <= {"\r", "\n"}
    assert max(map(len, rest.replace("\r", "\n").split("\n"))) <= columns


def test_an_exception_leaves_the_cursor_visible_and_no_block(terminal):
    def crash():
        with make_display(stream=terminal.stream) as display:
            display.start(0, 100)
            display.train(_row(1))
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        crash()
    text = terminal.text()
    assert text.rindex("\x1b[?25h") > text.rfind("\x1b[?25l")
    assert text.rindex("\x1b[2K") > text.rindex("loss"), "the block is erased"


def test_the_cursor_stays_visible_while_the_block_stands(terminal):
    """A killed process cannot bring it back."""
    display = make_display(stream=terminal.stream)
    display.start(0, 100)
    display.train(_row(1))
    terminal.stream.flush()
    master_text = terminal._bytes
    for _ in range(100):
        if b"\x1b[?25h" in (master_text := terminal._bytes):
            break
        threading.Event().wait(0.02)
    assert master_text.rindex(b"\x1b[?25h") > master_text.rfind(b"\x1b[?25l")
    display.close()
    terminal.text()


def test_the_block_is_redrawn_a_few_times_per_second_only(terminal):
    now = [0.0]
    with make_display(stream=terminal.stream, clock=lambda: now[0]) as display:
        display.start(0, 10_000)
        for step in range(1, 1001):
            now[0] = step * 0.01  # ten seconds in all
            display.train(_row(step))
    assert 38 <= terminal.text().count("MFU") <= 42


def test_a_lost_terminal_does_not_end_the_run(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    master, slave = pty.openpty()
    now = [0.0]
    with open(slave, "w", encoding="utf-8") as stream:
        display = make_display(stream=stream, clock=lambda: now[0])
        display.start(0, 10)
        display.train(_row(1))
        os.close(master)
        for step in range(2, 11):
            now[0] = float(step)
            display.train(_row(step))
        display.finish()


def test_importing_the_display_imports_neither_rich_nor_jax():
    script = (
        "import sys, jaxlm.telemetry.display\n"
        "print([m for m in ('rich', 'jax', 'numpy', 'tensorboardX') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
