# SPDX-License-Identifier: Apache-2.0
"""What a patch changes, and what of it means anything.  What it must not: bench/attacks/diffs.py."""

from pathlib import Path

import pytest

from jaxlm.bench.attacks.diffs import NORM, bad_patches
from jaxlm.bench.attacks.diffs import appended as patch
from jaxlm.core.errors import ConfigError
from jaxlm.research.patch.diff import NOTHING, changed_files, checked_paths, meaning

TEST = patch("tests/patches/test_it.py", "def test_it():\n    assert True\n")
GOOD = patch(NORM, "\nNOTHING = 1\n") + TEST


def test_an_honest_patch_passes_and_a_person_may_list_more() -> None:
    assert changed_files(GOOD) == [NORM, "tests/patches/test_it.py"]
    assert changed_files(bad_patches()["the data"][0], ("jaxlm/data/", "tests/patches/"))
    assert not Path("tests/patches").exists()


def test_what_a_person_lists_is_code_and_patches_may_always_bring_tests() -> None:
    assert checked_paths(["jaxlm/data/", "jaxlm/loss.py"])[-1] == "tests/patches/"
    assert changed_files(GOOD, checked_paths(["jaxlm/nn/"]))
    for path in ("../x.py", "jaxlm/../setup.cfg", "jaxlm/nn", "/etc/", "jaxlm/no.py", "docs/", ""):
        with pytest.raises(ConfigError, match="is no part of the code"):
            checked_paths([path])


def test_comments_and_layout_mean_nothing() -> None:
    assert meaning(patch(NORM, "\n# a comment\n") + TEST) == NOTHING
    assert meaning(GOOD) == meaning(patch(NORM, "\n\nNOTHING  =  1  # one\n") + TEST) != NOTHING
