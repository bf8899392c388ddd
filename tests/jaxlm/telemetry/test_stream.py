# SPDX-License-Identifier: Apache-2.0
"""A reader that leaves, a full disk, a poor encoding: the writer goes on."""

import io
import os
import subprocess
import sys

import pytest

from jaxlm.telemetry.stream import UnbreakableStream


def test_a_process_outlives_the_reader_of_its_output():
    """Exit status 0, nothing on stderr: Python's own flush at exit must not fail either."""
    script = (
        "import sys, time\n"
        "from jaxlm.telemetry.stream import UnbreakableStream\n"
        "out = UnbreakableStream(sys.stdout)\n"
        "for i in range(20_000):\n"
        "    out.write(f'line {i}\\n')\n"
        "out.flush()\n"
        "print('printed directly')\n"
        "print('alive', file=sys.stderr)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "line 0\n"
    process.stdout.close()
    assert process.stderr.read() == "alive\n"
    process.stderr.close()
    assert process.wait() == 0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_survived():
    with open("/dev/full", "w", encoding="utf-8") as full:
        stream = UnbreakableStream(full)
        for _ in range(3):
            assert stream.write("x" * 100_000) == 100_000
            stream.flush()


def test_characters_that_the_encoding_lacks_become_question_marks():
    raw = io.BytesIO()
    stream = UnbreakableStream(io.TextIOWrapper(raw, encoding="ascii"))
    stream.write("a━b\n")
    stream.flush()
    assert raw.getvalue() == b"a?b\n"
