# SPDX-License-Identifier: Apache-2.0
"""A text stream that a run can outlive.  Standard library only."""

import os
from collections.abc import Callable
from typing import Any, TextIO


class UnbreakableStream:
    """Once it cannot be written, it swallows everything: what is still buffered at exit, too."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Characters that the encoding lacks become "?"."""
        encoding = self._stream.encoding or "utf-8"
        self._attempt(self._stream.write, text.encode(encoding, "replace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        self._attempt(self._stream.flush)

    def _attempt(self, action: Callable[..., Any], *args: str) -> None:
        try:
            action(*args)
        except OSError:  # the reader of the pipe left, the terminal is gone, the disk is full
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)
