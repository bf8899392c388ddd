# SPDX-License-Identifier: Apache-2.0
"""Which code is running: the commit and a hash of what is not committed.  Standard library only."""

import hashlib
import shutil
import subprocess
from pathlib import Path
from typing import Any


def code_id() -> dict[str, Any]:
    """Commit and a hash of what is not committed, when the package sits in a git checkout."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists() or shutil.which("git") is None:
        return {"commit": None, "dirty_sha256": None}
    git = lambda *args: (
        subprocess.run(["git", "-C", str(root), *args], capture_output=True, check=False).stdout
    )
    diff = git("diff", "HEAD", "--", "jaxlm", "pallas_kernels")
    return {
        "commit": git("rev-parse", "HEAD").decode().strip() or None,
        "dirty_sha256": hashlib.sha256(diff).hexdigest() if diff else None,
    }
