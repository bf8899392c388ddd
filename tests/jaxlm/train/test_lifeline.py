# SPDX-License-Identifier: Apache-2.0
"""A process that dies is news to the others at once; one that leaves as agreed is none."""

import signal
import socket
import subprocess
import sys
import time

import pytest

from jaxlm.train import lifeline

HOLDS = """
import os, sys, time, jax
from jax._src import distributed
from jaxlm.core.errors import NonFiniteError
from jaxlm.train.lifeline import lifeline
address, me, end = sys.argv[1], int(sys.argv[2]), sys.argv[3]
jax.config.update("jax_platforms", "cpu")
jax.distributed.initialize(address, 3, me, heartbeat_timeout_seconds=100)
try:
    with lifeline(lambda: os.write(1, b"lost") and os._exit(75)):
        time.sleep(0.5)
        distributed.global_state.client.wait_at_barrier("inside", 60_000)
        if me == int(sys.argv[4]):
            if end == "die":
                os.kill(os.getpid(), 9)
            raise {"refuse": NonFiniteError, "fail": OSError}[end]("0")
        time.sleep(1 if end == "refuse" else 60)
except BaseException:
    pass
os._exit(0)
"""


def ends(end: str, who: int) -> list[tuple[int, str]]:
    """Exit code and output of each of three processes, the `who`th of which ends in a way."""
    with socket.create_server(("localhost", 0)) as free:
        place = f"localhost:{free.getsockname()[1]}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", HOLDS, place, str(i), end, str(who)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for i in range(3)
    ]
    said = [process.communicate(timeout=30)[0] for process in processes]
    return [(process.returncode, text) for process, text in zip(processes, said, strict=True)]


@pytest.mark.parametrize("who", [0, 2])
def test_the_death_of_one_is_news_to_all(who):
    start = time.monotonic()
    lost = [(75, "lost")] * 3
    lost[who] = (-signal.SIGKILL, "")
    assert ends("die", who) == lost
    assert time.monotonic() - start < 25  # its heartbeats take 100 s here


def test_an_error_of_one_is_news_to_all_but_not_one_that_all_have():
    assert ends("fail", 1) == [(75, "lost"), (0, ""), (75, "lost")]
    assert ends("refuse", 1) == [(0, "")] * 3


def test_a_stranger_that_comes_and_goes_is_no_process_of_the_run(monkeypatch):
    class Store:
        def key_value_set(self, key, value):
            self.value = value

    store, lost = Store(), []
    monkeypatch.setattr(lifeline.distributed.global_state, "client", store)
    monkeypatch.setattr(lifeline.jax, "process_index", lambda: 0)
    monkeypatch.setattr(lifeline.jax, "process_count", lambda: 1)
    with lifeline.lifeline(lambda: lost.append(True)):
        port, token = store.value.split()
        with socket.create_connection(("localhost", int(port))) as line:
            line.sendall(b"x" * len(token))
            assert line.recv(1) == b""  # refused
        with socket.create_connection(("localhost", int(port))) as line:
            line.sendall(token.encode())
        deadline = time.monotonic() + 10
        while not lost and time.monotonic() < deadline:
            time.sleep(0.01)
    assert lost == [True]
