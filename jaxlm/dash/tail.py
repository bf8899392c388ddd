# SPDX-License-Identifier: Apache-2.0
"""What was appended to a file since the last look.  Standard library only."""

import os
from pathlib import Path

CHUNK = 1 << 22  # bytes of one look: a long file is read over several, so that nothing waits for it


class Tail:
    """Whole new lines of a file that only grows: each look reads what is new, and nothing before it.

    restarts: how often the file was replaced by another, or by a shorter one; it is read anew then
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.at = 0  # where the next line begins
        self.bytes_read = 0
        self.restarts = 0
        self._inode: int | None = None

    def lines(self, most: int = CHUNK) -> list[bytes]:
        """New lines without their ends, of at most `most` bytes; none while the file is missing.

        What follows the last newline is a line still being written: it waits for the next look.
        """
        try:
            with open(self.path, "rb") as file:
                found = os.fstat(file.fileno())
                if self._inode not in (None, found.st_ino) or found.st_size < self.at:
                    self.at = 0
                    self.restarts += 1
                self._inode = found.st_ino
                if found.st_size == self.at:
                    return []
                file.seek(self.at)
                data = file.read(most)
        except (FileNotFoundError, NotADirectoryError):
            return []
        self.bytes_read += len(data)
        end = data.rfind(b"\n") + 1
        if not end and len(data) == most:  # no row is that long: damage, passed over
            end = len(data)
        self.at += end
        return data[:end].split(b"\n")[:-1] if end else []

    @property
    def size(self) -> int:
        """Bytes of the file at this moment; 0 where there is none."""
        try:
            return self.path.stat().st_size
        except OSError:
            return 0
