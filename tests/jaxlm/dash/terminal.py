# SPDX-License-Identifier: Apache-2.0
"""`jaxlm dash` as a person starts it: in a terminal of its own, of which the test is the screen."""

import contextlib
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.e2e.workshop import ROOT
from tests.jaxlm.research.terminal import TAKE_TERMINAL


class Dash:
    """The process, what it printed (to a pipe), and what its terminal shows."""

    def __init__(self, process: "subprocess.Popen[str]", screen: int) -> None:
        self.process, self._screen, self.seen = process, screen, ""
        assert process.stdout is not None
        self.printed = process.stdout.readline()
        self.url = self.printed.split()[0]

    def shows(self, pattern: str, seconds: float = 20) -> str:
        """The last match of a pattern's group on the terminal, once there is a new one."""
        old = len(re.findall(pattern, self.seen))
        end = time.monotonic() + seconds
        while len(found := re.findall(pattern, self.seen)) <= old:
            assert time.monotonic() < end, self.seen
            if select.select([self._screen], [], [], 0.2)[0]:
                self.seen += os.read(self._screen, 1 << 16).decode().replace("\r\n", "\n")
        return str(found[-1])


@contextlib.contextmanager
def dash(folder: Path, *arguments: str, has_terminal: bool = True) -> Iterator[Dash]:
    """Started in `folder`, on any free port; ended as by Ctrl-C."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "jaxlm.cli.main", "dash", "--port", "0", *arguments]
    process = subprocess.Popen(
        [sys.executable, "-c", TAKE_TERMINAL, *command] if has_terminal else command,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=theirs if has_terminal else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=not has_terminal,
        text=True,
    )
    os.close(theirs)
    try:
        yield Dash(process, ours)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=20)
        finally:
            process.kill()
            process.communicate()
            os.close(ours)
