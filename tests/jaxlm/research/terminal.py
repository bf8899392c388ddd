# SPDX-License-Identifier: Apache-2.0
"""A terminal whose person agrees to everything: `python terminal.py LOG COMMAND...`, for tests.

The command has a pseudo-terminal as its /dev/tty, and its output goes to LOG.
"""

import os
import pty
import re
import sys
from collections.abc import Sequence
from pathlib import Path

QUESTION = re.compile(rb"type (\S+) to agree")


def agreed(argv: Sequence[str], log: Path) -> tuple[int, str]:
    """Exit status of a command, and all that it asked."""
    pid, terminal = pty.fork()
    if pid == 0:
        with open(log, "ab") as out:
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
        os.execvp(argv[0], list(argv))
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
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), asked.decode("utf-8", "replace")


if __name__ == "__main__":
    code, asked = agreed(sys.argv[2:], Path(sys.argv[1]))
    print(asked)
    sys.exit(code)
