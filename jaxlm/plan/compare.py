# SPDX-License-Identifier: Apache-2.0
"""Two plans side by side.  Standard library only, beside the plans themselves."""

from collections.abc import Callable, Iterator

from jaxlm.plan.answer import Plan
from jaxlm.plan.search import middle

GB = 1e9


def table(left: Plan, right: Plan) -> Iterator[str]:
    """One line for each number, with the second's share of the first's."""
    yield f"{'':<26}{left.name[:17]:>18}{right.name[:17]:>18}{'ratio':>8}"
    yield f"{'':<26}{left.topology.name:>18}{right.topology.name:>18}"
    for name, value, form in _rows():
        a, b = value(left), value(right)
        if a is None or b is None:
            continue
        ratio = f"{b / a:8.3f}" if a else ""
        yield f"{name:<26}{form.format(a):>18}{form.format(b):>18}{ratio}".rstrip()
    for plan in (left, right):
        if not plan.fits:
            yield f"{plan.name} DOES NOT FIT {plan.topology.name}"


def _rows() -> Iterator[tuple[str, Callable[[Plan], float | None], str]]:
    of = lambda field: lambda plan: getattr(plan.reading, field) if plan.reading else None
    scaled = lambda field, by: (
        lambda p: None if p.reading is None else getattr(p.reading, field) / by
    )
    yield "predicted step, ms", lambda p: middle(p) * 1e3, "{:,.1f}"
    yield "  perfect overlap, ms", lambda p: p.step_s[0] * 1e3, "{:,.1f}"
    yield "  no overlap, ms", lambda p: p.step_s[2] and p.step_s[2] * 1e3, "{:,.1f}"
    yield "predicted MFU", lambda p: p.mfu(middle(p)), "{:.1%}"
    yield (
        "predicted tokens/s/chip",
        lambda p: p.tokens_per_s(middle(p)) / p.topology.num_chips,
        "{:,.0f}",
    )
    yield "predicted chip-hours", lambda p: p.chip_hours(middle(p)), "{:,.0f}"
    yield "memory, GiB", lambda p: p.memory.total / 2**30, "{:,.2f}"
    yield "tokens per device", lambda p: p.tokens_per_device, "{:,.0f}"
    yield "model TF", lambda p: p.model_flops / 1e12, "{:,.1f}"
    yield "executed TF", lambda p: p.executed_flops / 1e12, "{:,.1f}"
    yield "useful share", lambda p: p.useful_frac, "{:.1%}"
    yield "HBM GB", scaled("hbm_bytes", GB), "{:,.1f}"
    yield "wire GB", scaled("wire_bytes", GB), "{:,.2f}"
    yield "  not asynchronous, GB", scaled("exposed_bytes", GB), "{:,.2f}"
    yield "waiting for network, s", of("exposed_s"), "{:.4f}"
