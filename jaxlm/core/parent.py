# SPDX-License-Identifier: Apache-2.0
"""A process that ends with the one that started it, however that ends.  Standard library only."""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # Linux: the signal that a process gets when its parent ends


def die_with(parent: int) -> None:
    """Called by the process that is to end; exits at once when `parent` has gone already.

    Where there is no Linux, only that is noticed.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked for the signal
        sys.exit(f"process {parent}, which started this one, has gone")
