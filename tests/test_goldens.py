# SPDX-License-Identifier: Apache-2.0
"""Every shipped config resolves to its golden dump (scripts/update_goldens.py writes them)."""

import json
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.gin"))
resolved_dump = runpy.run_path(str(ROOT / "scripts" / "update_goldens.py"))["resolved_dump"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_config_resolves_to_its_golden(path):
    golden = json.loads((ROOT / "tests/goldens/configs" / f"{path.stem}.json").read_text())
    assert resolved_dump(path) == golden, "explain the change, then run scripts/update_goldens.py"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_header_says_what_it_is_and_how_to_run_it(path):
    header = path.read_text().split("\n\n")[0]
    assert f"configs/{path.name}" in header and header.startswith("# ")


def test_no_golden_without_its_config():
    names = {p.stem for p in (ROOT / "tests/goldens/configs").glob("*.json")}
    assert names == {p.stem for p in CONFIGS}
