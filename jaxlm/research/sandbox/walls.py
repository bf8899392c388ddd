# SPDX-License-Identifier: Apache-2.0
"""The inner wall: this process gives up what the command must not have, and becomes the command.

    python walls.py SPEC.json

Every file system but its folder read-only (in a mount namespace: Landlock knows nothing of chmod); no
capabilities, no new privileges; Landlock (files by path, no TCP); limits of CPU time, file size, open
files, processes and core dumps.  The system calls have no wrapper in the standard library: landlock(7),
mount_setattr(2), capabilities(7).
Run by file name, apart from the package: it must import nothing that the command could have changed.
"""

import ctypes
import json
import os
import re
import resource
import stat
import struct
import sys
from typing import Any

NO_NEW_PRIVS, DROP_CAPABILITY, LAST_CAPABILITY = 38, 24, 63  # prctl
BIND, AT_CWD, RECURSIVE, READ_ONLY, MOUNT_SETATTR = 4096, -100, 0x8000, 1, 442
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # system calls, the same on all machines
VERSION_FLAG, PATH_BENEATH = 1, 1
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, TRUNCATE, IOCTL_DEV = 1, 2, 4, 8, 1 << 14, 1 << 15
READ = EXECUTE | READ_FILE | READ_DIR
OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
PID_MAX_BY_NAMESPACE, PIDS_RESERVED, PIDS_PER_CPU = (6, 14), 300, 8  # Linux
RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}  # by version
TCP, SIGNALS_AND_SOCKETS = 3, 3


def version() -> int:
    """Of Landlock; 0 where the kernel has none."""
    return max(_libc().syscall(CREATE_RULESET, None, ctypes.c_size_t(0), VERSION_FLAG), 0)


def enter(readable: list[str], writable: list[str]) -> None:
    """From here on this process and its children reach these paths and no TCP port.

    Raises OSError where the kernel refuses.
    """
    found = version()
    rights = RIGHTS[max(v for v in RIGHTS if v <= found)]
    fields = [rights, TCP if found >= 4 else 0, SIGNALS_AND_SOCKETS if found >= 6 else 0]
    size = 8 * (3 if found >= 6 else 2 if found >= 4 else 1)
    attributes = ctypes.create_string_buffer(struct.pack("=QQQ", *fields)[:size])
    ruleset = _checked(CREATE_RULESET, attributes, ctypes.c_size_t(size), 0)
    for paths, allowed in ((readable, READ), (writable, rights)):
        for path in paths:
            _allow(ruleset, path, allowed & rights)
    _checked(RESTRICT_SELF, ctypes.c_int(ruleset), 0)
    os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(os.fstat(opened).st_mode):
        rights &= OF_FILES
    rule = ctypes.create_string_buffer(struct.pack("=Qi", rights, opened))
    _checked(ADD_RULE, ctypes.c_int(ruleset), PATH_BENEATH, rule, 0)
    os.close(opened)


def freeze(folder: str) -> None:
    """All mounts read-only but `folder`, for good.  In a mount namespace of this process's own.

    Raises OSError where the kernel refuses.
    """
    where = folder.encode()
    if _libc().mount(where, where, None, BIND, None):
        raise OSError(ctypes.get_errno(), f"cannot mount {folder}")
    for path, flags, on, off in ((b"/", RECURSIVE, READ_ONLY, 0), (where, 0, 0, READ_ONLY)):
        attributes = ctypes.create_string_buffer(struct.pack("=QQQQ", on, off, 0, 0), 32)
        _checked(MOUNT_SETATTR, AT_CWD, path, flags, attributes, ctypes.c_size_t(32))
    for capability in range(LAST_CAPABILITY + 1):  # without them nobody thaws it
        _libc().prctl(DROP_CAPABILITY, capability, 0, 0, 0)


def bound_tasks(most: int) -> None:
    """At most so many processes and threads in this namespace of processes, whoever they run as.

    The kernel's own limit per user spares root.  Numbers up to PIDS_RESERVED are given out once, so
    that many more may be there.  An older kernel has one such number for the whole machine, and none
    takes one below PIDS_PER_CPU for each processor that the machine might have.
    """
    if tuple(map(int, re.findall(r"\d+", os.uname().release)[:2])) < PID_MAX_BY_NAMESPACE:
        return
    with open("/sys/devices/system/cpu/possible", encoding="ascii") as file:
        cpus = 1 + int(re.findall(r"\d+", file.read())[-1])
    with open("/proc/sys/kernel/pid_max", "w", encoding="ascii") as file:
        file.write(str(max(PIDS_RESERVED + most, PIDS_PER_CPU * cpus)))


def limit(cpu_s: int, file_bytes: int, tasks: int | None) -> None:
    """tasks: None where this user's other processes count, too."""
    for what, most in (
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 1024),
        (resource.RLIMIT_NPROC, tasks),
    ):
        if most is None:
            continue
        hard = resource.getrlimit(what)[1]  # nobody may raise it
        bound = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (bound, bound))


def main(path: str) -> None:
    with open(path, encoding="utf-8") as file:
        spec: dict[str, Any] = json.load(file)
    tasks = spec["tasks"] if spec["namespaces"] else None
    if tasks is not None:
        bound_tasks(tasks)
        freeze(spec["folder"])
    os.chdir(spec["folder"])
    if _libc().prctl(NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "no_new_privs")
    if spec["landlock"]:
        enter(spec["readable"], spec["writable"])
    limit(spec["cpu_s"], spec["file_bytes"], tasks)
    os.closerange(3, 1024)
    os.execve(spec["command"][0], spec["command"], spec["environment"])


def _checked(number: int, *arguments: Any) -> int:
    found: int = _libc().syscall(number, *arguments)
    if found < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return found


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


if __name__ == "__main__":
    main(sys.argv[1])
