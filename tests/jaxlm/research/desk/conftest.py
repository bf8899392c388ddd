# SPDX-License-Identifier: Apache-2.0
"""Every test signs with a key of its own, in a folder of its own."""

from pathlib import Path

import pytest

from jaxlm.research.desk.signing import KEY_VARIABLE


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, str(tmp_path / "keys" / "approval.key"))
    monkeypatch.chdir(tmp_path)
