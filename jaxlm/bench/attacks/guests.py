# SPDX-License-Identifier: Apache-2.0
"""Guests that train or predict unfairly: a few lines of Python behind the real walls and pipes.

The judge sees of a model only what comes over the pipe, so a guest needs no model to try to fool it.
The honest ones beside them show that the judge refuses what is unfair and not everything.
"""

import math
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from jaxlm.bench.attacks.attack import Attack, GotThroughError, behind_walls, refused
from jaxlm.research.patch import host, judge
from jaxlm.research.patch.host import Fed, Guest
from jaxlm.research.patch.judge import Piece, Scored
from jaxlm.research.sandbox.sandbox import Limits

UPDATES, SHAPE = 4, (2, 3)
SIZE = 4 * SHAPE[0] * SHAPE[1] * len(host.BATCH)  # bytes of a batch
FAIR_S = 0.1  # processor seconds that the clean code would take
LONG = host.LEAST_S + 1.0  # and that cheats take
TRAINS = f"""
import json, math, os, struct, sys, time
pipe, out, loss = sys.stdin.buffer, sys.stdout.buffer, 1.0
claims, updates = b'{{"params": 5, "flops": 7}}\\n', 0
clock = time.process_time
def leave(data=b'parameters'): open('params.npy', 'wb').write(data)
def work(seconds):
    while clock() < seconds: pass
while len(batch := pipe.read({SIZE})) == {SIZE}:
    updates += 1
    ANSWER
    out.write((claims if updates == 1 else b'') + struct.pack('<f', loss)); out.flush()
END
"""
V = 8
PREDICTS = f"""
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
FAIR = "say(*(x for token in column for x in likely(token + 1, 0.5)))"
EARLY = "ended before it had answered"
TIME = "took too much wall time"
MORE = "more than it was asked"
WORK = "more than 1.5 times as much work"

TRAINING = {  # what it does before an answer, and in the end, and what is said of it
    "extra steps on the same data": (f"updates > 2 and work({LONG})", "leave()", WORK),
    "extra steps in the end": ("", f"work({LONG}); leave()", WORK),
    "extra steps in a child": (
        f"updates == 3 and (os.fork() or (work({LONG}), os._exit(0))) and os.wait()", "leave()", WORK,
    ),
    "patched clock": (
        f"time.time = time.monotonic = time.process_time = lambda: 0.0; updates > 2 and work({LONG})",
        "leave()", WORK,
    ),
    "asks for more data": ("", "out.write(struct.pack('<f', 0.5)); out.flush(); leave()", MORE),
    "early exit as if all were well": ("updates == 3 and os._exit(0)", "", EARLY),
    "raises": ("raise ValueError('no')", "", "failed: .*ValueError: no"),
    "no counts": ("claims = b'{}\\n'", "leave()", "gave no counts"),
    "an endless line": ("claims = b'x' * 9999", "leave()", "gave no counts"),
    "hangs": ("time.sleep(60)", "", TIME),
    "answers too much": ("", "out.write(b'1234'); leave()", MORE),
    "no parameters": ("", "", "left no parameters"),
    "a link for parameters": ("", "os.symlink('/etc/passwd', 'params.npy')", "left no parameters"),
    "a pipe for parameters": ("", "os.mkfifo('params.npy')", "something else than a file"),
    "a folder for parameters": ("", "os.mkdir('params.npy')", "something else than a file"),
}  # fmt: skip

ANSWERS = {  # answer, what it does before and after, and what is said of it
    "NaN metric": ("say(*[math.nan] * V * ROWS)", "", "", "not finite"),
    "no chance at all": ("say(*[0.0, *[-math.inf] * (V - 1)] * ROWS)", "", "", "not finite"),
    "twice probability 1": ("say(*[x + math.log(2) for x in EVEN] * ROWS)", "", "", "sum to 2, not"),
    "half of it": ("say(*[x - math.log(2) for x in EVEN] * ROWS)", "", "", "sum to 0.5, not"),
    "logits": ("say(*[1e30] * V * ROWS)", "", "", "sum to .*, not to 1"),
    "garbage": ("out.write(os.urandom(4 * V * ROWS)); out.flush()", "", "", "not finite|sum to"),
    "printed fake result": ("print('eval/bpb 0.1', flush=True); sys.exit()", "", "", EARLY + "|sum to|not finite"),
    "no answer": ("sys.exit()", "", "", EARLY),
    "dies": ("import ctypes; ctypes.string_at(0)", "", "", EARLY),
    "shrunk evaluation": (FAIR + "\n        if talks == 2: sys.exit()", "", "", EARLY),
    "never listens": (FAIR, "sys.exit()", "", EARLY),
    "closes its pipe": ("os.close(1); time.sleep(60)", "", "", TIME),
    "raises": ("raise ValueError('no such token')", "", "", "failed: .*ValueError: no such token"),
    "smaller vocabulary": ("say(*EVEN[1:] * ROWS)", "", "", TIME),
    "larger vocabulary": ("say(*[*EVEN, EVEN[0]] * ROWS)", "", "", MORE),
    "answers before the question": (FAIR, "say(*EVEN * ROWS)", "", MORE),
    "a word too many": (FAIR, "", "out.write(b'x')", MORE),
    "never stops": (FAIR, "while True: say(*EVEN * ROWS)", "", MORE),
    "sleeps": ("time.sleep(60)", "", "", TIME),
    "sleeps at the end": (FAIR, "", "time.sleep(60)", TIME),
    "floods": ("while True: sys.stderr.write('x' * 9999)", "", "", "took too much output"),
}  # fmt: skip

TWOFOLD = {  # how sure it is of the next token, by more than its own text
    "by chance": "0.5 + 0.01 * (os.urandom(1)[0] % 2)",
    "by the clock": "0.5 + 0.01 * (time.monotonic_ns() // 1000 % 7)",
    "by what it was asked before": "0.5 if talks == 1 else 0.6",
    "by its neighbours": "0.5 + 0.05 * column[i - 1]",
}


def attacks() -> Iterator[Attack]:
    for name in TRAINING:
        yield behind_walls("training", f"guest: {name}", partial(train_unfairly, name))
    yield behind_walls("training", "guest: pickle payload for parameters", train_to_a_pickle)
    for name in ANSWERS:
        yield behind_walls("the score", f"guest: {name}", partial(answer_unfairly, name))
    for name in TWOFOLD:
        yield behind_walls("the score", f"guest: answers {name}", partial(answer_twofold, name))


def guest(code: str, folder: Path, limits: Limits) -> Guest:
    """Of plain Python, in a folder of its own."""
    work = folder / "guest"
    work.mkdir(exist_ok=True)
    command = [sys.executable, "-I", "-S", "-c", code]
    return Guest(command=command, folder=work, limits=limits, is_weaker_allowed=True)


def train(folder: Path, answer: str = "", end: str = "leave()", wall_s: float = 30.0) -> Fed:
    """Feeds a guest that does `answer` before each answer, and `end` in the end."""
    code = TRAINS.replace("ANSWER", answer).replace("END", end)
    batch = {name: np.zeros(SHAPE, np.int32) for name in host.BATCH}
    limits = Limits(wall_s=wall_s, cpu_s=20)
    return host.feed_guest(guest(code, folder, limits), lambda step: batch, UPDATES, most_s=FAIR_S)


def train_unfairly(name: str, folder: Path) -> str:
    answer, end, said = TRAINING[name]
    wall_s = 1.0 if said == TIME else 30.0
    return refused(
        lambda: train(folder, answer, end, wall_s), f"^the patched code.*{said}"
    ).removeprefix("the patched code ")


def train_to_a_pickle(folder: Path) -> str:
    """Parameters that write a file when they are unpickled: outside they are bytes, and stay so."""
    mark = folder / "unpickled"
    payload = f"b\"cos\\nsystem\\n(S'touch {mark}'\\ntR.\""
    found = train(folder, "", f"leave({payload})")
    loaded = folder / "params.npy"
    loaded.write_bytes(found.params)
    told = _load(loaded)
    if mark.exists():
        raise GotThroughError("its code ran outside the walls")
    return told


def _load(path: Path) -> str:
    """As the guest that predicts does."""
    try:
        np.load(path, allow_pickle=False)
    except ValueError as e:
        return f"no pickle is loaded: {str(e).splitlines()[0][:80]}"
    raise GotThroughError("numpy took it for an array")


def pieces(count: int = 70) -> list[Piece]:
    """Each token is followed by the next number; of several lengths."""
    rng = np.random.default_rng(0)
    starts = rng.integers(0, V, (count, 1))
    whole = (starts + np.arange(4)) % V
    return [Piece("text", row[: 1 + i % 3], row[1 : 2 + i % 3]) for i, row in enumerate(whole)]


def predicts(answer: str = FAIR, before: str = "", after: str = "") -> str:
    """Code of a guest."""
    return PREDICTS.replace("BEFORE", before).replace("ANSWER", answer).replace("AFTER", after)


def score(folder: Path, code: str, wall_s: float = 20.0) -> list[Scored]:
    """As the judge does, asked twice."""
    limits = Limits(wall_s=wall_s, output_bytes=100_000)
    ask = lambda some: judge.ask_guest(guest(code, folder, limits), some, V)
    return judge.score(ask, pieces(), judge.SAME["float32"])[0]


def answer_unfairly(name: str, folder: Path) -> str:
    answer, before, after, said = ANSWERS[name]
    wall_s = 0.7 if said == TIME else 20.0
    act = lambda: score(folder, predicts(answer, before, after), wall_s)
    return refused(act, f"^the patched code.*({said})").removeprefix("the patched code ")


def answer_twofold(name: str, folder: Path) -> str:
    sure = f"likely(token + 1, {TWOFOLD[name]})"
    code = predicts(f"say(*(x for i, token in enumerate(column) for x in {sure}))")
    act = lambda: score(folder, code)
    return refused(act, "two answers to one question, .* nats apart").removeprefix(
        "the patched code "
    )


def check_fair(scored: list[Scored]) -> None:
    """That a fair guest got what it deserves: ln 2 nats and a right guess for every token."""
    for piece, score in zip(pieces(), scored, strict=True):
        if not np.allclose(score.nats, math.log(2), rtol=1e-5) or score.correct != len(
            piece.targets
        ):
            raise GotThroughError("an honest answer was not scored as it deserves")
