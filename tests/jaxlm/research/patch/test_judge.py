# SPDX-License-Identifier: Apache-2.0
"""Answers that are no fair ones end in one clear line, and a fair one is scored as it deserves.

The guests here are a few lines of plain Python behind the real walls and pipes: no model, no jax.
"""

import contextlib
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from jaxlm.core.errors import RunError
from jaxlm.research.patch import host, judge
from jaxlm.research.patch.judge import Piece
from jaxlm.research.sandbox import sandbox
from jaxlm.research.sandbox.sandbox import Limits

pytestmark = pytest.mark.skipif(sandbox.level() == "none", reason="this machine has no wall")
V = 8
GUEST = f"""
import math, os, struct, sys, time
V, ROWS = {V}, {judge.ROWS}
pipe, out = sys.stdin.buffer, sys.stdout.buffer
def say(*log_p): out.write(struct.pack(f"<{{len(log_p)}}f", *log_p)); out.flush()
EVEN = [-math.log(V)] * V
def likely(token, p): return [math.log(p if v == token % V else (1 - p) / (V - 1)) for v in range(V)]
talks = 0
BEFORE
while len(header := pipe.read(4)) == 4:
    talks += 1
    for t in range(struct.unpack("<i", header)[0]):
        column = struct.unpack(f"<{{ROWS}}i", pipe.read(4 * ROWS))
        ANSWER
AFTER
"""
HONEST = "say(*(x for token in column for x in likely(token + 1, 0.5)))"


def pieces(count: int = 70) -> list[Piece]:
    """Each token is followed by the next number; of several lengths."""
    rng = np.random.default_rng(0)
    starts = rng.integers(0, V, (count, 1))
    whole = (starts + np.arange(4)) % V
    return [Piece("text", row[: 1 + i % 3], row[1 : 2 + i % 3]) for i, row in enumerate(whole)]


@pytest.fixture
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    @contextlib.contextmanager
    def guest(diff: str | None, spec: dict[str, Any]) -> Iterator[tuple[Path, Path]]:
        folder = tmp_path / "guest"
        folder.mkdir(exist_ok=True)
        yield folder, folder

    monkeypatch.setattr(judge, "guest", guest)
    monkeypatch.setattr(judge, "guest_config", lambda config: config)
    monkeypatch.setattr(host, "GRACE_S", 0.5)
    monkeypatch.setattr(judge, "LIMITS", Limits(wall_s=20, output_bytes=100_000))
    config = SimpleNamespace(model=SimpleNamespace(vocab_size=V, compute_dtype="float32"))
    run = SimpleNamespace(diff="a diff", is_weaker_allowed=True)
    return {"run": run, "config": config, "params": tmp_path / "params.npy"}


def behaves(
    monkeypatch: pytest.MonkeyPatch, answer: str = HONEST, before: str = "", after: str = ""
) -> None:
    code = GUEST.replace("BEFORE", before).replace("ANSWER", answer).replace("AFTER", after)
    monkeypatch.setattr(host, "guest_command", lambda *_: [sys.executable, "-I", "-S", "-c", code])


def asked(setting: dict[str, Any], some: list[Piece]) -> list[judge.Scored]:
    return judge._asked(setting["run"], setting["config"], setting["params"], some)[0]


def test_an_honest_answer_is_scored_as_it_deserves(
    setting: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    behaves(monkeypatch)
    some = pieces()
    scored = asked(setting, some)
    for piece, score in zip(some, scored, strict=True):
        np.testing.assert_allclose(score.nats, np.full(len(piece.targets), math.log(2)), rtol=1e-6)
        assert score.correct == len(piece.targets)
    judge._compare(**setting, pieces=some, before=scored)


def test_who_calls_all_equally_likely_guesses_one(
    setting: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    behaves(monkeypatch, "say(*EVEN * ROWS)")
    some = pieces()
    assert sum(score.correct for score in asked(setting, some)) == sum(
        int((piece.targets == 0).sum()) for piece in some
    )


EARLY = "ended before it had answered"
UNFAIR = {  # answer, what it does before and after, and what is said of it
    "NaN": ("say(*[math.nan] * V * ROWS)", "", "", "not finite"),
    "no chance at all": ("say(*[0.0, *[-math.inf] * (V - 1)] * ROWS)", "", "", "not finite"),
    "twice probability 1": ("say(*[x + math.log(2) for x in EVEN] * ROWS)", "", "", "sum to 2, not"),
    "half of it": ("say(*[x - math.log(2) for x in EVEN] * ROWS)", "", "", "sum to 0.5, not"),
    "logits": ("say(*[1e30] * V * ROWS)", "", "", "sum to .*, not to 1"),
    "garbage": ("out.write(os.urandom(4 * V * ROWS)); out.flush()", "", "", "not finite|sum to"),
    "no answer": ("sys.exit()", "", "", EARLY),
    "dies": ("import ctypes; ctypes.string_at(0)", "", "", EARLY),
    "ends early": (HONEST + "\n        if talks == 2: sys.exit()", "", "", EARLY),
    "never listens": (HONEST, "sys.exit()", "", EARLY),
    "closes its pipe": ("os.close(1); time.sleep(60)", "", "", "took too much wall time"),
    "raises": ("raise ValueError('no such token')", "", "", "failed: .*ValueError: no such token"),
    "smaller vocabulary": ("say(*EVEN[1:] * ROWS)", "", "", "took too much wall time"),
    "larger vocabulary": ("say(*[*EVEN, EVEN[0]] * ROWS)", "", "", "more than it was asked"),
    "answers before the question": (HONEST, "say(*EVEN * ROWS)", "", "more than it was asked"),
    "a word too many": (HONEST, "", "out.write(b'x')", "more than it was asked"),
    "never stops": (HONEST, "while True: say(*EVEN * ROWS)", "", "more than it was asked"),
    "sleeps": ("time.sleep(60)", "", "", "took too much wall time"),
    "sleeps at the end": (HONEST, "", "time.sleep(60)", "took too much wall time"),
    "floods": ("while True: sys.stderr.write('x' * 9999)", "", "", "took too much output"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNFAIR)
def test_what_is_no_fair_answer_is_refused(
    name: str, setting: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer, before, after, said = UNFAIR[name]
    behaves(monkeypatch, answer, before, after)
    if "wall time" in said:
        monkeypatch.setattr(judge, "LIMITS", Limits(wall_s=0.5))
    with pytest.raises(RunError, match=f"^the patched code.*({said})") as refused:
        asked(setting, pieces())
    assert "\n" not in str(refused.value)


TWOFOLD = {  # how sure it is, of which token
    "by chance": "0.5 + 0.01 * (os.urandom(1)[0] % 2)",
    "by the clock": "0.5 + 0.01 * (time.monotonic_ns() // 1000 % 7)",
    "after some practice": "0.5 if talks == 1 else 0.6",
    "by its neighbours": "0.5 + 0.05 * column[i - 1]",
}


@pytest.mark.parametrize("name", TWOFOLD)
def test_two_answers_to_one_question_are_refused(
    name: str, setting: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = f"likely(token + 1, {TWOFOLD[name]})"
    behaves(monkeypatch, f"say(*(x for i, token in enumerate(column) for x in {answer}))")
    some = pieces()
    scored = asked(setting, some)
    again = slice(len(some) - judge.ROWS, None) if name == "after some practice" else slice(None)
    with pytest.raises(RunError, match="two answers to one question, .* nats apart"):
        judge._compare(**setting, pieces=some[again], before=scored[again])
