# SPDX-License-Identifier: Apache-2.0
"""A text stream that a run can outlive.  Standard library only."""

import os
from collections.abc import Callable
from typing import Any, TextIO


class UnbreakableStream:
    """A text stream that, once it cannot be written, swallows everything: also at the process's exit."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        encoding = self._stream.encoding or "utf-8"
        return self._attempt(lambda: self._stream.write(text.encode(encoding, "replace").decode(encoding)))

    def flush(self) -> None:
        self._attempt(self._stream.flush)

    def _attempt(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except OSError:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())  # what is still buffered goes there too
            os.close(null)
