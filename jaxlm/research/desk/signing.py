# SPDX-License-Identifier: Apache-2.0
"""A person's signature under a record: what no model can write.

HMAC-SHA256 with a key of the person's own, made at first use and kept out of every project:
JAXLM_APPROVAL_KEY, or ~/.config/jaxlm/approval.key (mode 600).  The signature covers the record it
follows, so that a line copied from earlier in the ledger is worth nothing.  Standard library only.
"""

import hashlib
import hmac
import os
import secrets
from pathlib import Path
from typing import Any

from jaxlm.core.canonical import canonical_json, to_jsonable
from jaxlm.core.errors import RunError
from jaxlm.research.ledger import FIRST, Ledger, Record

KEY_VARIABLE = "JAXLM_APPROVAL_KEY"


def key_path() -> Path:
    named = os.environ.get(KEY_VARIABLE)
    return Path(named) if named else Path.home() / ".config" / "jaxlm" / "approval.key"


def read_key() -> bytes | None:
    """None where nobody has signed anything yet.  Raises RunError for a key that others can read."""
    path = key_path()
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_mode & 0o077:
                raise RunError(f"{path} can be read by others; `chmod 600` it, then again")
            return bytes.fromhex(file.read().decode("ascii").strip())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as e:
        raise RunError(f"{path} holds no approval key ({e}); restore it, or move it away") from e


def own_key() -> bytes:
    """The person's key; made here when there is none."""
    key = read_key()
    if key is None:
        path = key_path()
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32) + "\n")
        key = read_key()
        assert key is not None
    return key


def append_signed(ledger: Ledger, kind: str, body: Any, key: bytes) -> Record:
    """Appends `body` with "after", the hash of the record before it, and "signature" over both."""
    while True:
        last = None
        for last in ledger:  # noqa: B007
            pass
        after = last.hash if last else FIRST
        plain: dict[str, Any] = {**to_jsonable(body), "after": after}
        record = ledger.append(kind, {**plain, "signature": mac(kind, plain, key)})
        if record.previous == after:  # else somebody wrote in between, and this one is void
            return record


def is_signed(record: Record, key: bytes | None) -> bool:
    """Whether the holder of `key` wrote this record, at this place of the ledger."""
    plain = {k: v for k, v in record.body.items() if k != "signature"}
    found = record.body.get("signature")
    if key is None or not isinstance(found, str) or plain.get("after") != record.previous:
        return False
    return hmac.compare_digest(found.encode(), mac(record.kind, plain, key).encode())


def mac(kind: str, plain: dict[str, Any], key: bytes) -> str:
    """Over a record's kind and body, without its signature."""
    return hmac.new(key, canonical_json([kind, plain]).encode(), hashlib.sha256).hexdigest()
