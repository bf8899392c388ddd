# SPDX-License-Identifier: Apache-2.0
"""Several processes of one run: how they begin together, and how none waits for one that failed.

They talk through the coordinator's key-value store, which needs no device: a collective would
give up on a process that prepares data for longer than its time limit.
"""

import atexit
import contextlib
import ctypes
import itertools
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
from jax._src import distributed  # the key-value store has no public name

from jaxlm.core.errors import NonFiniteError, PeerError, RunError, UserError
from jaxlm.train.lifeline import DAY_MS, lifeline

T = TypeVar("T")
OK = "ok"
_meetings = itertools.count()  # all processes meet in step, so a number makes a key of its own
LOST = (
    "Gloo",
    "CoordinationService",
    "Timed out while waiting for",
)  # the last is Orbax's, at a save
GONE = "another process has gone; start them all again, to go on from the last checkpoint"
GRACE_S = 2.0  # in which a process that lost another mostly comes to an end by itself
ANSWER_S = 5.0  # within which a coordinator that is well takes a value


def all_alike(name: str, value: dict[str, Any]) -> None:
    """Raises RunError, in all processes, where one of them has another `value` than process 0.

    What differs between them trains on a mixture of both, or waits for ever.  PeerError where
    another process has gone.
    """
    client: Any = distributed.global_state.client
    if client is None:
        return
    key = f"jaxlm/alike/{next(_meetings)}/"
    with _ending_when_lost():
        client.key_value_set(f"{key}{jax.process_index()}", json.dumps(value))
        told = [
            client.blocking_key_value_get(f"{key}{i}", DAY_MS) for i in range(jax.process_count())
        ]
    first, *others = map(json.loads, told)
    for process, other in enumerate(others, start=1):
        for field in sorted(first.keys() | other.keys()):
            if first.get(field) != other.get(field):
                raise RunError(
                    f"process {process} has another {name}: {field} is {other.get(field)!r} there, "
                    f"{first.get(field)!r} in process 0; start all with the same command and files"
                )


def main_first(work: Callable[[], T]) -> T:
    """Process 0 does `work`, then the others, who find what it made; returns once all have done it.

    Raises what `work` raises, and in the other processes a RunError that quotes it; PeerError where
    another process has gone.
    """
    client, me = distributed.global_state.client, jax.process_index()
    if client is None:
        return work()
    with _ending_when_lost():
        return _main_first(work, client, me, f"jaxlm/ready/{next(_meetings)}/")


def _main_first(work: Callable[[], T], client: Any, me: int, key: str) -> T:
    def hear(process: int) -> None:
        news = client.blocking_key_value_get(f"{key}{process}", DAY_MS)
        if news != OK:
            raise RunError(f"process {process} stopped: {news}")

    if me > 0:
        hear(0)
    news = "see its own message"
    try:
        result = work()
        news = OK
    except UserError as error:
        news = str(error)
        raise
    finally:
        client.key_value_set(f"{key}{me}", news)
    for process in range(jax.process_count()):
        hear(process)
    return result


@contextlib.contextmanager
def leaving_at_failure() -> Iterator[None]:
    """Around what all processes do in step: one that fails in it ends without waiting for the rest.

    A usual exit meets the others at JAX's last barrier and waits there for up to five minutes,
    while they wait for this one inside a collective.  When it just goes, their connections break.

    Raises PeerError where another process has gone.
    """
    try:
        with _ending_when_lost():
            yield
    except (NonFiniteError, PeerError):  # the first is raised in all processes at the same step
        raise
    except BaseException as error:
        if jax.process_count() > 1:
            _exit_at_once(getattr(error, "exit_code", 1))
        raise


def _exit_at_once(code: int) -> None:
    """When everything has been said, without JAX's last barrier."""
    atexit.register(os._exit, code)


@contextlib.contextmanager
def _ending_when_lost() -> Iterator[None]:
    """Raises PeerError where the body fails because another process has gone, and exits at once then.

    Where it does not come out of the body by itself (it may wait for the other at the end of a save,
    or while that one prepares data) it is ended all the same.
    """
    leaving = threading.Lock()

    def end() -> None:
        time.sleep(GRACE_S)
        if leaving.acquire(blocking=False):
            os.write(2, f"jaxlm: error: {GONE}\n".encode())
            os._exit(PeerError.exit_code)

    with _leaving_at_abort(), lifeline(end):
        try:
            yield
        except Exception as error:
            if jax.process_count() > 1 and any(name in str(error) for name in LOST):
                _exit_at_once(PeerError.exit_code)
                line = str(error.__cause__ or error).splitlines()[0]
                raise PeerError(f"{GONE} ({line})") from error
            raise
        finally:
            leaving.acquire()  # out of the body it comes to its own end


@contextlib.contextmanager
def _leaving_at_abort() -> Iterator[None]:
    """Where JAX hears of a lost process first it aborts, out of Python's reach: that is 75 too.

    Schedulers start a job again by that code.  An abort of another kind stays what it is.  Python's
    own signal handlers run too late for this one, so it is set through the C library; it stays when
    the body fails, as JAX may abort while the error is being said.
    """
    if distributed.global_state.client is None:
        yield
        return
    libc = ctypes.CDLL(None)
    libc.signal(signal.SIGABRT, _at_abort)
    yield
    libc.signal(signal.SIGABRT, None)  # the default


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _at_abort(number: int) -> None:
    if not _answers(distributed.global_state.client):
        os.write(2, f"jaxlm: error: {GONE}\n".encode())
        os._exit(PeerError.exit_code)


def _answers(client: Any) -> bool:
    """Whether the coordinator still takes a value from this process."""
    took, key = list[bool](), f"jaxlm/abort/{distributed.global_state.process_id}"

    def ask() -> None:
        with contextlib.suppress(Exception):
            client.key_value_set(key, OK, allow_overwrite=True)
            took.append(True)

    thread = threading.Thread(target=ask, daemon=True)  # the call may never return
    thread.start()
    thread.join(ANSWER_S)
    return bool(took)
