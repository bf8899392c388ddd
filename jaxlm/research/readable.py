# SPDX-License-Identifier: Apache-2.0
"""Records as lines for people.  Standard library only."""

from typing import Any

from jaxlm.research.desk.readable import LINES
from jaxlm.research.ledger import Record
from jaxlm.telemetry.readable import printable


def line(record: Record) -> str:
    """What a record says, in one line."""
    body = record.body
    say = {
        "protocol": _protocol, "approval": _approval, "run": _run, "finding": _finding,
        "review": _review, "forecast": _forecast, "score": _score,
    } | LINES  # fmt: skip
    return printable(say[record.kind](body) if record.kind in say else str(body)[:80])


def _protocol(body: dict[str, Any]) -> str:
    arms = ", ".join(arm["name"] for arm in body["arms"])
    how = body["search"]["policy"] if body["search"] else f"seeds {len(body['seeds'])}"
    return f"{body['id'][:12]}  {body['stage']}: {arms}; {how}; {body['hypothesis']}"


def _approval(body: dict[str, Any]) -> str:
    return f"{body['protocol'][:12]}  by {body['by']}"


def _run(body: dict[str, Any]) -> str:
    metric = "-" if body["metric"] is None else f"{body['metric']:.4f}"
    reused = ", trained earlier" if body["is_reused"] else ""
    far = f" at {body['fraction']:.0%}" if body["fraction"] < 1 else ""
    where = ", larger scale" if body["scale"] else ""
    return f"{body['arm']}, seed {body['seed']}: {metric} ({body['status']}{far}{where}{reused})"


def _finding(body: dict[str, Any]) -> str:
    noise = "unknown" if body["sigma"] is None else f"{body['sigma']:.4f} nats"
    return f"{body['protocol'][:12]}  noise {noise}; {body['problem'] or 'fit for comparisons'}"


def _forecast(body: dict[str, Any]) -> str:
    told = (
        f"{k} {v['median']:.4g} ({v['low']:.4g} to {v['high']:.4g})"
        for k, v in body["expected"].items()
    )
    return f"{body['protocol'][:12]}  expected: {'; '.join(told)}"


def _score(body: dict[str, Any]) -> str:
    high = "unknown" if body["high"] is None else f"{body['high']:.4g}"
    held = sum(body["covered"].values())
    return (
        f"{body['protocol'][:12]}  {body['ratio']:.4g} of the tokens ({body['low']:.4g} to {high}); "
        f"{held} of {len(body['covered'])} forecasts hold"
    )


def _review(body: dict[str, Any]) -> str:
    verdicts = "; ".join(f"{v['arm']}: {v['decision']}" for v in body["verdicts"])
    exploratory = "EXPLORATORY  " if body["is_exploratory"] else ""
    return f"{body['protocol'][:12]}  {exploratory}{verdicts}"
