# SPDX-License-Identifier: Apache-2.0
"""A connection of every process to process 0, which breaks at once when either of them dies.

JAX's heartbeats take some 20 s for that, and abort with lines of C++ where a process waits for a
barrier.  They stay for what breaks no connection: a machine that loses its power.
"""

import contextlib
import hmac
import itertools
import logging
import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax._src import distributed  # the key-value store has no public name

from jaxlm.core.errors import NonFiniteError

BYE = b"."  # said by a process that leaves as agreed
CONNECT_S = 5.0
DAY_MS = 24 * 3600 * 1000  # as long as process 0 may take; should it die, JAX ends the others
_numbers = itertools.count()  # all processes hold their lifelines in step


@contextlib.contextmanager
def lifeline(on_loss: Callable[[], None]) -> Iterator[None]:
    """While the body runs, `on_loss` is called, on another thread, once another process dies.

    Process 0 hears of all, the others of process 0, whose end is then the news of any.
    """
    client: Any = distributed.global_state.client
    if client is None:
        yield
        return
    lines, over = list[socket.socket](), threading.Event()

    def watch(line: socket.socket) -> None:
        lines.append(line)
        line.settimeout(None)
        if _received(line, 1) != BYE and not over.is_set():
            on_loss()

    with contextlib.ExitStack() as stack:
        if jax.process_index() == 0:
            _listen(client, stack, watch)
        else:
            _connect(client, watch)
        try:
            yield
        except NonFiniteError:  # is raised in all processes at the same step
            _leave(lines, over, BYE)
            raise
        except BaseException:  # to the others it is as if this process had died
            _leave(lines, over, b"")
            raise
        _leave(lines, over, BYE)


def _listen(
    client: Any, stack: contextlib.ExitStack, watch: Callable[[socket.socket], None]
) -> None:
    """Of process 0: each of the others comes to be watched when it connects."""
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    server = socket.create_server(("", 0), family=family, dualstack_ipv6=dual)
    token = secrets.token_hex(16)  # a stranger's connection is no process of this run

    def greet(line: socket.socket) -> None:
        line.settimeout(CONNECT_S)
        if hmac.compare_digest(_received(line, len(token)), token.encode()):
            watch(line)
        line.close()

    def accept() -> None:
        with contextlib.suppress(OSError):  # the server was shut down
            while True:
                _start(greet, server.accept()[0])

    stack.callback(server.close)
    stack.callback(server.shutdown, socket.SHUT_RDWR)  # wakes the thread that accepts
    _start(accept)
    key = f"jaxlm/lifeline/{next(_numbers)}/"
    client.key_value_set(f"{key}0", f"{server.getsockname()[1]} {token}")
    for i in range(1, jax.process_count()):  # all hold it, or have said that they cannot
        client.blocking_key_value_get(f"{key}{i}", DAY_MS)


def _connect(client: Any, watch: Callable[[socket.socket], None]) -> None:
    """Of another process, which goes without where process 0 cannot be reached at that port."""
    key = f"jaxlm/lifeline/{next(_numbers)}/"
    port, token = client.blocking_key_value_get(f"{key}0", DAY_MS).split()
    host = str(distributed.global_state.coordinator_address).rpartition(":")[0].strip("[]")
    try:
        line = socket.create_connection((host, int(port)), CONNECT_S)
        line.sendall(token.encode())
    except OSError as e:
        logging.getLogger(__name__).warning(
            "process 0 cannot be reached at %s:%s (%s); that another process died will be "
            "noticed by heartbeats only, some 20 s later", host, port, e,
        )  # fmt: skip
    else:
        _start(watch, line)
    client.key_value_set(f"{key}{jax.process_index()}", "")


def _start(work: Callable[..., None], *args: Any) -> None:
    threading.Thread(target=work, args=args, daemon=True).start()


def _leave(lines: list[socket.socket], over: threading.Event, word: bytes) -> None:
    over.set()
    for line in lines:
        with contextlib.suppress(OSError):  # the other has gone already
            line.sendall(word)
            line.shutdown(socket.SHUT_RDWR)  # wakes the thread that watches


def _received(line: socket.socket, size: int) -> bytes:
    """`size` bytes, or fewer where the other end has gone."""
    found = b""
    with contextlib.suppress(OSError):
        while len(found) < size and (more := line.recv(size - len(found))):
            found += more
    return found
