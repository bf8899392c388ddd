# SPDX-License-Identifier: Apache-2.0
"""The TPU compiler's schedule of a step, taken before it makes machine code.

The compiler orders the operations, chooses where every buffer lies, and then spends most of its time
on registers and bundles, of which a plan reads nothing.  With `xla_dump_to` it writes down what it
has in between: the scheduled program, then its buffers.  A program that does not fit is refused
before LAST is written.
"""

import re
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from jaxlm.core.errors import ConfigError

PROGRAM = "*.after_optimizations.txt"
BUFFERS = "*.after_optimizations-buffer-assignment.txt"
LAST = "*.after_optimizations_after_buffer_assignment.txt"  # next comes the machine code
POLL_S = 0.1
_ALLOCATION = re.compile(r"^allocation \d+: size (\d+),(.*):$", re.MULTILINE)


def schedule_of(lowered: Any, folder: Path) -> tuple[str, dict[str, int]]:
    """(The scheduled program's text, bytes of one device by kind).

    Raises what the compiler raises, and ConfigError for a compiler that writes no schedule down.

    The compiler writes below `folder`, and goes on in a thread that only the end of the process stops.
    """
    with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as name:
        options = {"xla_dump_to": name, "xla_dump_hlo_as_text": True}
        compiling = ThreadPoolExecutor(1).submit(lowered.compile, options)
        while not (is_written := any(Path(name).glob(LAST))) and not compiling.done():
            time.sleep(POLL_S)
        if not is_written:
            compiling.result()
            raise ConfigError(
                "this libtpu writes down no schedule under the names that jaxlm plan knows; install "
                "the one that jaxlm pins: pip install 'jaxlm[tpu]'"
            )
        (program,), (buffers,) = Path(name).glob(PROGRAM), Path(name).glob(BUFFERS)
        text, assignment = (path.read_text(encoding="utf-8") for path in (program, buffers))
    return text, memory_of(assignment)


def memory_of(assignment: str) -> dict[str, int]:
    """Bytes in HBM from the text of a buffer assignment, named as in `memory_analysis`."""
    sizes = dict.fromkeys(("argument", "output", "alias", "temp"), 0)
    for size, what in _ALLOCATION.findall(assignment):
        if "color" in what or "thread-local" in what:  # elsewhere, or inside of one operation
            continue
        is_given, is_result = "parameter" in what, "maybe-live-out" in what
        kinds = {"argument": is_given, "output": is_result, "alias": is_given and is_result}
        kinds["temp"] = not (is_given or is_result)
        for kind, counts in kinds.items():
            sizes[kind] += int(size) if counts else 0
    return sizes
