# SPDX-License-Identifier: Apache-2.0
"""Training that is fed from outside: a guest that cheats, fails or hangs ends in one clear line.

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
from jaxlm.research.patch import host
from jaxlm.research.sandbox import sandbox

pytestmark = pytest.mark.skipif(sandbox.level() == "none", reason="this machine has no wall")
UPDATES, SIZE = 4, 2 * 3 * 4 * len(host.BATCH)  # bytes of a batch of 2 rows and 3 positions
GUEST = f"""
import math, os, struct, sys, time
pipe, out, loss = sys.stdin.buffer, sys.stdout.buffer, 1.0
claims, updates = b'{{"params": 5, "flops": 7}}\\n', 0
def leave(): open('params.npy', 'wb').write(b'parameters')
def work(seconds):
    while time.process_time() < seconds: pass
while len(batch := pipe.read({SIZE})) == {SIZE}:
    updates += 1
    ANSWER
    out.write((claims if updates == 1 else b'') + struct.pack('<f', loss)); out.flush()
END
"""


class Zeros:
    """A source of batches, which counts them."""

    given = 0

    def __init__(self, *_: object) -> None:
        Zeros.given = 0

    def batch(self, step: int) -> dict[str, np.ndarray]:
        assert step == Zeros.given
        Zeros.given += 1
        return {name: np.zeros((2, 3), np.int32) for name in host.BATCH}


@pytest.fixture
def fed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Feeds a guest that does `answer` before each answer, and `end` in the end."""

    @contextlib.contextmanager
    def guest(diff: str | None, spec: dict[str, Any]) -> Iterator[tuple[Path, Path]]:
        (tmp_path / "guest").mkdir()
        yield tmp_path / "guest", tmp_path / "guest"

    def feed(answer: str = "", end: str = "leave()", start_s: float = 20.0) -> host.Fed:
        code = GUEST.replace("ANSWER", answer).replace("END", end)
        command = [sys.executable, "-I", "-S", "-c", code]
        monkeypatch.setattr(host, "guest_command", lambda *_: command)
        monkeypatch.setattr(host, "START_S", start_s)
        config: Any = SimpleNamespace(data=None)
        return host.feed(config, "a diff", UPDATES, is_weaker_allowed=True, most_s=0.1)

    data = SimpleNamespace(row_format=SimpleNamespace(vocab_size=8))
    monkeypatch.setattr(host, "prepare", lambda _: data)
    monkeypatch.setattr(host, "BatchSource", Zeros)
    monkeypatch.setattr(host, "guest", guest)
    monkeypatch.setattr(host, "guest_config", lambda config: {})
    monkeypatch.setattr(host, "GRACE_S", 0.5)
    monkeypatch.setattr(host, "LEAST_S", 0.5)
    return feed


def test_an_honest_guest_gets_each_batch_once_and_leaves_its_parameters(fed: Any) -> None:
    found = fed()
    assert (found.losses, found.params) == ([1.0] * UPDATES, b"parameters")
    assert found.claims == {"params": 5, "flops": 7}
    assert Zeros.given == UPDATES


def test_a_run_ends_with_its_first_loss_that_is_not_finite(fed: Any) -> None:
    found = fed("loss = math.nan if updates == 2 else 1.0")
    assert (len(found.losses), Zeros.given) == (2, 2)
    assert math.isnan(found.losses[-1])


EARLY = "ended before it had answered"
UNFAIR = {  # what it does before an answer, and in the end, and what is said of it
    "works longer": ("updates > 2 and work(1.5)", "leave()", "more than 1.5 times as much work"),
    "works in the end": ("", "work(1.5); leave()", "more than 1.5 times as much work"),
    "works in a child": ("updates == 3 and (os.fork() or (work(1.5), os._exit(0))) and os.wait()",
                         "leave()", "more than 1.5 times as much work"),
    "exits as if all were well": ("updates == 3 and os._exit(0)", "", EARLY),
    "raises": ("raise ValueError('no')", "", "failed: .*ValueError: no"),
    "no counts": ("claims = b'{}\\n'", "leave()", "gave no counts"),
    "an endless line": ("claims = b'x' * 9999", "leave()", "gave no counts"),
    "asks for no batch": ("time.sleep(60)", "", "took too much wall time"),
    "answers too much": ("", "out.write(b'1234'); leave()", "more than it was asked"),
    "no parameters": ("", "", "left no parameters"),
    "a link": ("", "os.symlink('/etc/passwd', 'params.npy')", "left no parameters"),
    "a pipe": ("", "os.mkfifo('params.npy')", "something else than a file"),
    "a folder": ("", "os.mkdir('params.npy')", "something else than a file"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNFAIR)
def test_what_is_no_fair_training_is_refused(name: str, fed: Any) -> None:
    answer, end, said = UNFAIR[name]
    with pytest.raises(RunError, match=f"^the patched code.*{said}") as refused:
        fed(answer, end, 1.0 if "wall time" in said else 20.0)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "claims",
    ["", "{", "[]", '{"params": 1}', '{"params": NaN, "flops": 1}', '{"params": -1, "flops": 1}',
     '{"params": 1, "flops": 1' + "0" * 400 + "}", "[" * 4000, '{"params": [], "flops": 1}'],
)  # fmt: skip
def test_claims_that_are_no_counts_are_refused(claims: str) -> None:
    import io

    process: Any = SimpleNamespace(stdout=io.BytesIO(claims.encode() + b"\n"))
    with pytest.raises(RunError, match="no counts of its parameters and FLOPs"):
        host._claims(process)
