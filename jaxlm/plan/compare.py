# SPDX-License-Identifier: Apache-2.0
"""Two plans side by side.  Standard library only, beside the plans themselves."""

from collections.abc import Callable, Iterator

from jaxlm.plan.answer import Plan
from jaxlm.plan.text import NO_COST

GB = 1e9


def table(left: Plan, right: Plan, price: float | None = None) -> Iterator[str]:
    """One line for each number that both have, with the second's share of the first's.

    price: of a chip-hour, for the cost
    """
    yield f"{'':<26}{left.name[:17]:>18}{right.name[:17]:>18}{'ratio':>8}"
    yield f"{'':<26}{left.topology.name:>18}{right.topology.name:>18}"
    for name, value, form in _rows(price):
        a, b = value(left), value(right)
        if a is None or b is None:
            continue
        ratio = f"{b / a:8.3f}" if a else ""
        yield f"{name:<26}{form.format(a):>18}{form.format(b):>18}{ratio}".rstrip()
    if price is not None and None in (left.middle_s, right.middle_s):
        yield NO_COST
    for plan in (left, right):
        if not plan.fits:
            yield f"{plan.name} DOES NOT FIT {plan.topology.name}"


def _rows(price: float | None) -> Iterator[tuple[str, Callable[[Plan], float | None], str]]:
    of = lambda field: lambda plan: getattr(plan.reading, field) if plan.reading else None
    scaled = lambda field, by: (
        lambda p: None if p.reading is None else getattr(p.reading, field) / by
    )
    # of the step that is predicted: of GPUs there is none
    middle = lambda value: lambda p: None if p.middle_s is None else value(p, p.middle_s)
    yield "predicted step, ms", middle(lambda p, s: s * 1e3), "{:,.1f}"
    yield "  perfect overlap, ms", lambda p: p.step_s[0] * 1e3, "{:,.1f}"
    yield "  no overlap, ms", lambda p: p.step_s[2] and p.step_s[2] * 1e3, "{:,.1f}"
    yield "predicted MFU", middle(lambda p, s: p.mfu(s)), "{:.1%}"
    per_chip = lambda p, s: p.tokens_per_s(s) / p.topology.num_chips
    yield "predicted tokens/s/chip", middle(per_chip), "{:,.0f}"
    yield "predicted chip-hours", middle(lambda p, s: p.chip_hours(s)), "{:,.0f}"
    if price is not None:
        yield "predicted cost", middle(lambda p, s: p.chip_hours(s) * price), "{:,.0f}"
    yield "memory, GiB", lambda p: p.memory.total / 2**30, "{:,.2f}"
    yield "tokens per device", lambda p: p.tokens_per_device, "{:,.0f}"
    yield "model TF", lambda p: p.model_flops / 1e12, "{:,.1f}"
    yield "executed TF", lambda p: p.executed_flops / 1e12, "{:,.1f}"
    yield "useful share", lambda p: p.useful_frac, "{:.1%}"
    yield "HBM GB", scaled("hbm_bytes", GB), "{:,.1f}"
    yield "wire GB", scaled("wire_bytes", GB), "{:,.2f}"
    yield "  not asynchronous, GB", scaled("exposed_bytes", GB), "{:,.2f}"
    yield "waiting for network, s", of("exposed_s"), "{:.4f}"
