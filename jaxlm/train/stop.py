# SPDX-License-Identifier: Apache-2.0
"""Being asked to stop: the first SIGTERM or Ctrl-C is a request, the second ends the process.

Signals are noticed on a thread of their own (through the wakeup file descriptor), so a second one
works even while the main thread sits in a long compilation.  With several processes, one that is
asked names a step a little ahead in the coordinator's key-value store, and all stop there.
"""

import itertools
import os
import signal
import socket
import threading
from types import TracebackType
from typing import Any

import jax
from jax._src import distributed  # the key-value store has no public name

STOP_KEYS = "jaxlm/stop/{}/"  # one below it for each process that was asked
_numbers = itertools.count()  # of runs, which all processes make in step
# Updates between the request and the common stop.  No process can be further ahead of another than
# the loop's dispatch depth (2), so all of them see the key before they reach the step.
LEAD = 4


class StopRequest:
    """Context manager that turns signals into a question the loop asks between updates.

    after: updates after which to stop without a signal.
    """

    def __init__(self, after: int | None = None) -> None:
        self.after = after
        self.signal: signal.Signals | None = None
        self._has_asked = False
        self._keys = STOP_KEYS.format(next(_numbers))

    def __enter__(self) -> "StopRequest":
        self._read, self._write = socket.socketpair()
        self._write.setblocking(False)
        self._old_fd = signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        ignore = lambda *_: None  # the thread acts; Python only must not die of the signal
        self._old = {s: signal.signal(s, ignore) for s in (signal.SIGTERM, signal.SIGINT)}
        self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        signal.set_wakeup_fd(self._old_fd)
        for number, handler in self._old.items():
            signal.signal(number, handler)
        self._write.close()  # ends the thread
        self._thread.join()
        self._read.close()

    def _listen(self) -> None:
        while received := self._read.recv(1):
            number = received[0]
            if number not in (signal.SIGTERM, signal.SIGINT):
                continue
            if self.signal is not None:
                os._exit(128 + number)
            self.signal = signal.Signals(number)

    def should_stop(self, step: int) -> bool:
        """Whether to stop now, before update step + 1.  All processes answer alike at every step."""
        if self.after is not None and step >= self.after:
            return True
        if jax.process_count() == 1:
            return self.signal is not None
        client: Any = distributed.global_state.client
        if self.signal is not None and not self._has_asked:
            self._has_asked = True
            client.key_value_set(f"{self._keys}{jax.process_index()}", str(step + LEAD))
        asked = client.key_value_dir_get(self._keys)
        return bool(asked) and step >= min(int(value) for _, value in asked)
