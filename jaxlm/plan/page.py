# SPDX-License-Identifier: Apache-2.0
"""A plan as one self-contained HTML page.  Standard library only, beside the plan itself."""

import dataclasses
from collections.abc import Iterable, Sequence

from jaxlm.plan.advice import Change, binds
from jaxlm.plan.answer import FORMULA, Plan
from jaxlm.plan.chips import GIB
from jaxlm.plan.program import Reading
from jaxlm.plan.text import refusal
from jaxlm.telemetry.page import page
from jaxlm.telemetry.readable import duration, markup, number, percent


def plan_page(plan: Plan, changes: Sequence[Change], price: float | None) -> str:
    """The whole document."""
    how = plan.source
    mesh = " x ".join(f"{k} {n}" for k, n in plan.estimate.mesh.items() if n > 1)
    cards = {}
    if (middle := plan.middle_s) is not None:
        cards = {
            "predicted step": duration(middle) if middle >= 10 else f"{middle * 1e3:,.1f} ms",
            "predicted MFU": percent(plan.mfu(middle)),
            "predicted tokens/s": number(plan.tokens_per_s(middle)),
            "predicted chip-hours": number(plan.chip_hours(middle), 4),
        }
        if price is not None:
            cards["predicted cost"] = number(plan.chip_hours(middle) * price, 4)
    parts = [
        f"<h1>{markup(plan.name)} on {markup(plan.topology.name)}</h1>",
        f'<p class="mute">{markup(f"{plan.topology.num_devices} devices, {mesh}; {how}")}. All times'
        " are predicted, none is measured.</p>",
        _cards(cards),
        "<h2>Predicted step</h2>",
        _bars(_times(plan), lambda s: f"{s * 1e3:,.1f} ms, MFU {percent(plan.mfu(s))}"),
        "<h2>Memory of a device</h2>",
        f"<p>{_verdict(plan)}</p>",
        _bars(_memory(plan), lambda size: f"{size / GIB:,.2f} GiB", plan.capacity),
        *_program(plan),
        "<h2>What binds</h2>",
        f"<p>{markup(binds(plan))}</p>",
        "".join(f"<p>{markup(c.what)}: <small>{markup(c.effect)}</small></p>" for c in changes),
        f'<p class="mute">MFU counts model FLOPs: {markup(FORMULA)}.</p>',
    ]
    return page(f"{plan.name} on {plan.topology.name} · jaxlm plan", "\n".join(parts))


def _verdict(plan: Plan) -> str:
    total, capacity = plan.memory.total / GIB, plan.capacity / GIB
    word = ("fits", "completed") if plan.fits else ("does not fit", "crashed")
    said = refusal(plan)
    refused = "" if said is None else f". The compiler refused it: {markup(said)}"
    pill = f'<span class="pill {word[1]}">{word[0]}</span>'
    return f"{pill} {total:,.2f} of {capacity:,.2f} GiB{refused}"


def _times(plan: Plan) -> list[tuple[str, float]]:
    names = ("perfect overlap", "best estimate", "no overlap")
    return [(name, s) for name, s in zip(names, plan.step_s, strict=True) if s is not None]


def _memory(plan: Plan) -> list[tuple[str, float]]:
    return [(name.replace("_", " "), s) for name, s in dataclasses.asdict(plan.memory).items()]


def _program(plan: Plan) -> Iterable[str]:
    if plan.reading is not None:
        yield from _reading(plan, plan.reading)
    if not plan.collectives:
        return
    yield "<h2>Collectives</h2>"
    head = ("kind", "mesh axes", "per update", "GB sent", "asynchronous", "ms alone")
    yield _table(
        head,
        (
            (
                c.kind,
                ", ".join(c.axes),
                f"{c.num_run:,.0f}",
                f"{c.wire_bytes / 1e9:,.3f}",
                percent(c.async_bytes / c.wire_bytes) if c.wire_bytes else "-",
                f"{c.seconds * 1e3:,.1f}",
            )
            for c in plan.collectives
        ),
    )


def _reading(plan: Plan, reading: Reading) -> Iterable[str]:
    milliseconds = lambda s: f"{s * 1e3:,.1f} ms"
    yield "<h2>Where the predicted time goes</h2>"
    kinds = sorted(reading.seconds_by_kind.items(), key=lambda kind: -kind[1])
    yield _bars(kinds, milliseconds)
    yield "<h2>Slowest operations</h2>"
    yield _bars(list(reading.slowest), milliseconds)
    yield "<h2>Work of a device, per update</h2>"
    facts = {
        "model FLOPs": f"{plan.model_flops / 1e12:,.1f} TF",
        "executed FLOPs": f"{plan.executed_flops / 1e12:,.1f} TF, {percent(plan.useful_frac)} useful",
        "HBM": f"{reading.hbm_bytes / 1e9:,.1f} GB",
        "to and from the hosts' memory": f"{reading.host_bytes / 1e9:,.1f} GB",
        "sent to other devices": f"{reading.wire_bytes / 1e9:,.2f} GB, of it"
        f" {reading.exposed_bytes / 1e9:,.2f} GB in collectives that nothing hides",
    }
    yield _table(("what", "how much"), facts.items())


def _cards(cards: dict[str, str]) -> str:
    items = (f"<div><dt>{markup(k)}</dt><dd>{markup(v)}</dd></div>" for k, v in cards.items())
    return f'<dl class="cards">{"".join(items)}</dl>'


def _bars(rows: Sequence[tuple[str, float]], text, whole: float | None = None) -> str:  # type: ignore[no-untyped-def]
    """Named bars; the longest is `whole`, else the largest value."""
    longest = whole or max((value for _, value in rows), default=0.0) or 1.0
    cells = (
        f'<span>{markup(name)}</span><i class="run" style="width:'
        f'{100 * min(1.0, max(value, 0) / longest):.1f}%"></i><span>{markup(text(value))}</span>'
        for name, value in rows
    )
    return f'<div class="box"><div class="bars">{"".join(cells)}</div></div>'


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    cells = "".join(f"<th>{markup(name)}</th>" for name in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{markup(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f'<div class="box"><table><tr>{cells}</tr>{body}</table></div>'
