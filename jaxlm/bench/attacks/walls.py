# SPDX-License-Identifier: Apache-2.0
"""Code behind the sandbox's walls that reads what it must not, damages, or takes too much."""

import os
import socket
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from jaxlm.bench.attacks.attack import SECRET, Attack, GotThroughError, behind_walls
from jaxlm.research.desk.signing import key_path
from jaxlm.research.sandbox import sandbox
from jaxlm.research.sandbox.sandbox import Limits, Result

SMALL = Limits(wall_s=20, cpu_s=10, memory_bytes=600 << 20, processes=20, disk_bytes=20 << 20)
HONEST = "honest"  # what the evaluator's file holds

# code that prints what it got, or fails.  {root}: the folder above its own; {key}: the approvals' key;
# {terces}: the secret backwards, for code that only looks
THEFTS = {
    "environment": "import os; print(os.environ)",
    "parent's environment": "import os; print(open(f'/proc/{os.getppid()}/environ').read())",
    "everybody's environment": "import glob\nfor p in glob.glob('/proc/[0-9]*/environ'): print(open(p).read())",
    "validation data": "print(open('../private/valid.txt').read())",
    "by absolute path": "print(open('{root}/private/valid.txt').read())",
    "by symbolic link": "import os; os.symlink('{root}/private', 'x'); print(open('x/valid.txt').read())",
    "by hard link": "import os; os.link('{root}/private/valid.txt', 'x'); print(open('x').read())",
    "by root of a process": "print(open('/proc/1/root{root}/private/valid.txt').read())",
    "by descriptor": "import os\nfor i in range(3, 300):\n try: print(os.read(i, 99))\n except OSError: pass",
    "by mount": "import os; os.system('mount --bind {root}/private . && cat valid.txt')",
    "by a new namespace": "import os; os.system('unshare -Urm cat {root}/private/valid.txt')",
    "home": "import os; os.listdir('{home}'); print('{terces}'[::-1])",
    "by chroot": "import os; os.chroot('{root}/private'); print(open('/valid.txt').read())",
    "the key of approvals": "print(open('{key}').read())",
}  # fmt: skip

DAMAGE = {
    "the evaluator": "open('{root}/evaluator.py', 'w').write('1')",
    "the evaluator, by link": "import os; os.symlink('{root}', 'x'); open('x/evaluator.py', 'w').write('1')",
    "by renaming": "import os; open('x', 'w').write('1'); os.replace('x', '{root}/evaluator.py')",
    "by removing": "import os; os.remove('{root}/evaluator.py')",
    "by truncating": "import os; os.truncate('{root}/evaluator.py', 0)",
    "its rights": "import os; os.chmod('{root}/evaluator.py', 0)",
    "its age": "import os; os.utime('{root}/evaluator.py', (0, 0))",
    "its rights, after a thaw": "import os, ctypes, struct; c = ctypes.CDLL(None)\n"
    "a = ctypes.create_string_buffer(struct.pack('QQQQ', 0, 1, 0, 0), 32)\n"
    "c.syscall(442, -100, b'/', 0x8000, a, ctypes.c_size_t(32)); os.chmod('{root}/evaluator.py', 0)",
    "the interpreter": "import sys, os; open(os.path.join(sys.prefix, 'x.pth'), 'w').write('import os')",
    "a process outside": "import os; os.kill({pid}, 9)",
    "its parent": "import os, signal; os.kill(os.getppid(), signal.SIGKILL)",
}  # fmt: skip

GREED = {  # by the limit that must end it
    "wall time": "import time; time.sleep(60)",
    "processes": "import os\nwhile True: os.fork()",
    "disk": "import os\nfor i in range(999): open(f'f{i}', 'wb').write(bytes(1 << 20))",
    "memory": "x = []\nwhile True: x.append(bytearray(50 << 20))",
    "output": "while True: print('x' * 10000)",
}
GREEDY = {"processes": "fork bomb", "disk": "disk filler", "memory": "memory hog",
          "output": "flood of output", "wall time": "sleeps for ever"}  # fmt: skip

SEND = {
    "TCP": "import socket; s = socket.create_connection(('127.0.0.1', {port}), 2); s.send(b'x')",
    "UDP": "import socket; socket.socket(2, 2).sendto(b'x', ('127.0.0.1', {port}))",
}


def attacks() -> Iterator[Attack]:
    for name in THEFTS:
        yield behind_walls("files and keys", f"read: {name}", partial(steal, name))
    for name in DAMAGE:
        yield behind_walls("files and processes", f"change: {name}", partial(damage, name))
    for name in GREED:
        yield behind_walls("the machine", GREEDY[name], partial(take_too_much, name))
    for name in SEND:
        yield behind_walls("the machine", f"network by {name}", partial(call_out, name))
    yield behind_walls("the machine", "a child that outlives it", outlive)
    yield behind_walls("the machine", "one large file", large_file)
    yield behind_walls("the machine", "work without end", endless_work)


def run(code: str, folder: Path, limits: Limits = SMALL, readable: tuple[Path, ...] = ()) -> Result:
    """In a folder of its own below `folder`."""
    work = folder / "work"
    work.mkdir(exist_ok=True)
    return sandbox.run([sys.executable, "-c", code], work, readable, limits)


def steal(name: str, folder: Path) -> str:
    (folder / "private").mkdir()
    (folder / "private" / "valid.txt").write_text(SECRET)
    key = key_path()
    names = {"root": folder, "key": key, "home": Path.home(), "terces": SECRET[::-1]}
    code = THEFTS[name]
    for word, value in names.items():
        code = code.replace(f"{{{word}}}", str(value))
    found = run(code, folder)
    if SECRET in found.output or key.read_text().strip() in found.output:
        raise GotThroughError("it printed the secret")
    return f"walls: {_last(found)}"


def damage(name: str, folder: Path) -> str:
    evaluator = folder / "evaluator.py"
    evaluator.write_text(HONEST)
    before = evaluator.stat().st_mode, evaluator.stat().st_mtime
    code = DAMAGE[name].replace("{root}", str(folder)).replace("{pid}", str(os.getpid()))
    found = run(code, folder)
    after = evaluator.stat().st_mode, evaluator.stat().st_mtime
    left = list(Path(sys.prefix).glob("x.pth"))
    for path in left:
        path.unlink()
    if evaluator.read_text() != HONEST or after != before or left:
        raise GotThroughError("it changed a file outside its folder")
    return f"walls: {_last(found)}"


def take_too_much(name: str, folder: Path) -> str:
    limits = Limits(
        wall_s=3 if name == "wall time" else 60, cpu_s=30, memory_bytes=600 << 20, processes=20,
        disk_bytes=20 << 20, output_bytes=100_000,
    )  # fmt: skip
    found = run(GREED[name], folder, limits)
    if found.ended_by != name or len(found.output) > limits.output_bytes:
        raise GotThroughError(f"ended by {found.ended_by}, with code {found.code}")
    return f"limit: {name}"


def call_out(name: str, folder: Path) -> str:
    kind = socket.SOCK_STREAM if name == "TCP" else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET, kind) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(0.5)
        if name == "TCP":
            server.listen()
        found = run(SEND[name].replace("{port}", str(server.getsockname()[1])), folder)
        try:
            if name == "TCP":
                server.accept()[0].close()
            else:
                server.recv(1)
        except TimeoutError:
            return f"walls: {_last(found)}"
    raise GotThroughError("something came out")


def outlive(folder: Path) -> str:
    """A daemon that writes after its parent's end."""
    run(
        "import os, time\nif os.fork() == 0:\n os.setsid(); time.sleep(1)\n open('late', 'w')",
        folder,
    )
    time.sleep(1.5)
    if (folder / "work" / "late").exists():
        raise GotThroughError("it wrote after its end")
    return "the watch: the whole tree of processes ended with it"


def large_file(folder: Path) -> str:
    found = run("open('f', 'wb').write(bytes(40 << 20))", folder)
    size = (folder / "work" / "f").stat().st_size
    if found.code == 0 or size > SMALL.disk_bytes:
        raise GotThroughError(f"it wrote {size:,} bytes")
    return f"limit: size of a file; {_last(found)}"


def endless_work(folder: Path) -> str:
    found = run("while True: pass", folder, Limits(wall_s=60, cpu_s=1))
    if found.code == 0 or found.ended_by == "wall time":
        raise GotThroughError(f"ended by {found.ended_by}, with code {found.code}")
    return "limit: processor time"


def _last(found: Result) -> str:
    """Its last words, which tell what it met."""
    lines = [line for line in found.output.strip().splitlines() if line.strip()]
    return lines[-1] if lines else "it got nothing"
