# SPDX-License-Identifier: Apache-2.0
"""A terminal whose person agrees to everything: `python terminal.py LOG COMMAND...`, for tests.

The command has a pseudo-terminal as its /dev/tty, and its output goes to LOG.
"""

import os
import pty
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

# not pty.fork: a test's process has threads of JAX
TAKE_TERMINAL = (
    "import fcntl, os, sys, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "os.execvp(sys.argv[1], sys.argv[1:])"
)
QUESTION = re.compile(rb"type (\S+) to agree")


def agreed(argv: Sequence[str], log: Path) -> tuple[int, str]:
    """Exit status of a command, and all that it asked."""
    terminal, theirs = pty.openpty()
    with open(log, "ab") as out:
        command = [sys.executable, "-c", TAKE_TERMINAL, *argv]
        process = subprocess.Popen(command, stdin=theirs, stdout=out, stderr=out)
    os.close(theirs)
    asked, answered = b"", 0
    while True:
        try:
            news = os.read(terminal, 4096)
        except OSError:  # the command has ended
            break
        if not news:
            break
        asked += news
        for match in list(QUESTION.finditer(asked))[answered:]:
            os.write(terminal, match[1] + b"\n")
            answered += 1
    os.close(terminal)
    return process.wait(), asked.decode("utf-8", "replace")


if __name__ == "__main__":
    code, asked = agreed(sys.argv[2:], Path(sys.argv[1]))
    print(asked)
    sys.exit(code)
