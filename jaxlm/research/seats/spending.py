# SPDX-License-Identifier: Apache-2.0
"""What a model's calls cost: the most is reserved in the ledger before a call, the truth after it.

A token is at least a byte, so a request's bytes bound its tokens, and no reply is longer than
max_tokens: what was reserved is never less than what is charged.  A call whose end nobody saw
(a cut connection, a killed process) stays charged with all that was reserved.
"""

import dataclasses
import secrets
from typing import Any

from jaxlm.research.desk import gates
from jaxlm.research.desk.desk import Desk
from jaxlm.research.desk.records import Call, Seat
from jaxlm.research.desk.signing import read_key

CACHE_WRITE, CACHE_READ = 1.25, 0.1  # prices of cached input, relative to plain input


def reserve(desk: Desk, seat: Seat, request_bytes: int) -> Call:
    """Raises RunError, before anything is sent, when the most it may cost is not left."""
    most = (
        request_bytes * CACHE_WRITE * seat.usd_per_mtok_in + seat.max_tokens * seat.usd_per_mtok_out
    ) / 1e6
    call = Call(call=secrets.token_hex(8), model=seat.model, status="reserved", usd=most)
    gates.append(desk.ledger, read_key(), "call", call)
    return call


def settle(
    desk: Desk, seat: Seat, call: Call, usage: Any, stop: str | None, tools: tuple[str, ...]
) -> Call:
    """Records a completed call with what it cost."""
    written = getattr(usage, "cache_creation_input_tokens", None) or 0
    read = getattr(usage, "cache_read_input_tokens", None) or 0
    weighted = usage.input_tokens + CACHE_WRITE * written + CACHE_READ * read
    usd = (weighted * seat.usd_per_mtok_in + usage.output_tokens * seat.usd_per_mtok_out) / 1e6
    done = dataclasses.replace(
        call,
        status="completed",
        usd=usd,
        input_tokens=usage.input_tokens + written + read,
        output_tokens=usage.output_tokens,
        stop_reason=stop,
        tools=tools,
    )
    desk.ledger.append("call", done)
    return done


def fail(desk: Desk, call: Call, error: str, is_charged: bool) -> None:
    """Records a call that gave nothing; charged in full where the provider may have worked."""
    usd = call.usd if is_charged else 0.0
    desk.ledger.append("call", dataclasses.replace(call, status="failed", usd=usd, error=error))
