# SPDX-License-Identifier: Apache-2.0
"""A patch that touches what it must not, or is not plain code, is refused before anything of it runs."""

import difflib
from pathlib import Path

import pytest

from jaxlm.core.errors import ConfigError
from jaxlm.research.fingerprint import PACKAGE
from jaxlm.research.patch.diff import NOTHING, changed_files, meaning

NORM = "jaxlm/nn/norm.py"


def patch(path: str, added: str) -> str:
    """A diff that appends to a file, or makes one."""
    file = PACKAGE.parent / path
    old = file.read_text() if file.exists() else ""
    names = (f"a/{path}" if old else "/dev/null", f"b/{path}")
    lines = old.splitlines(True), (old + added).splitlines(True)
    return "".join(difflib.unified_diff(*lines, *names))


TEST = patch("tests/patches/test_it.py", "def test_it():\n    assert True\n")
GOOD = patch(NORM, "\nNOTHING = 1\n") + TEST
LINK = "diff --git a/jaxlm/nn/x.py b/jaxlm/nn/x.py\nnew file mode 120000\n--- /dev/null\n+++ b/jaxlm/nn/x.py\n"
RENAME = f"diff --git a/{NORM} b/jaxlm/nn/y.py\nsimilarity index 100%\nrename from {NORM}\nrename to jaxlm/nn/y.py\n"
BAD = {
    "the evaluator": (patch("jaxlm/evaluate.py", "\nx = 1\n") + TEST, "touches jaxlm/evaluate.py"),
    "the ledger": (patch("jaxlm/research/ledger.py", "\nx = 1\n") + TEST, "touches jaxlm/research"),
    "the data": (patch("jaxlm/data/loader.py", "\nx = 1\n") + TEST, "touches jaxlm/data"),
    "the guest": (patch("jaxlm/research/patch/guest.py", "\nx = 1\n") + TEST, "touches jaxlm/rese"),
    "start-up code": (patch("sitecustomize.py", "x = 1\n") + TEST, "touches sitecustomize.py"),
    "outside the tree": (patch("../x.py", "x = 1\n") + TEST, "leaves the tree"),
    "absolute path": (TEST + "--- /dev/null\n+++ /tmp/x.py\n@@ -0,0 +1 @@\n+x\n", "absolute path"),
    "a link": (LINK + "@@ -0,0 +1 @@\n+/etc/passwd\n" + TEST, "makes a link"),
    "a mode": (f"diff --git a/{NORM} b/{NORM}\nold mode 100644\nnew mode 100755\n" + GOOD, "a file's mode"),
    "a rename": (RENAME + TEST, "renames"),
    "a binary": (GOOD + "GIT binary patch\nliteral 4\n", "binary"),
    "no Python": (patch("jaxlm/nn/x.txt", "x\n") + TEST, "no Python file"),
    "broken Python": (patch(NORM, "\ndef (\n") + TEST, "no Python"),
    "memorised text": (patch(NORM, f"\nX = '{'abc' * 200}'\n") + TEST, "data, not code"),
    "memorised numbers": (patch(NORM, f"\nX = {list(range(200))}\n") + TEST, "data, not code"),
    "too long": (patch(NORM, "\nx = 1\n" * 12_000) + TEST, "bytes, more than"),
    "no test": (patch(NORM, "\nx = 1\n"), "brings no test"),
    "nothing but a test": (TEST, "changes no code"),
    "another code": (GOOD.replace("\n ", "\n other "), "does not apply"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_no_patch_may_do(name: str) -> None:
    diff, why = BAD[name]
    before = (PACKAGE / "nn" / "norm.py").read_bytes()
    with pytest.raises(ConfigError, match=why):
        changed_files(diff)
    assert (PACKAGE / "nn" / "norm.py").read_bytes() == before


def test_an_honest_patch_passes_and_a_person_may_list_more() -> None:
    assert changed_files(GOOD) == [NORM, "tests/patches/test_it.py"]
    assert changed_files(BAD["the data"][0], ("jaxlm/data/", "tests/patches/"))
    assert not Path("tests/patches").exists()


def test_comments_and_layout_mean_nothing() -> None:
    assert meaning(patch(NORM, "\n# a comment\n") + TEST) == NOTHING
    assert meaning(GOOD) == meaning(patch(NORM, "\n\nNOTHING  =  1  # one\n") + TEST) != NOTHING
