# SPDX-License-Identifier: Apache-2.0
"""A plan as one screen of text, 80 columns wide.  Standard library only."""

import textwrap
from collections.abc import Iterator

from jaxlm.model.accounting import num_params
from jaxlm.plan.advice import Change, binds
from jaxlm.plan.answer import FORMULA, Plan
from jaxlm.plan.chips import GIB
from jaxlm.plan.program import CollectiveSum, Reading

WIDTH = 80
BAR = 24
SAID = 240  # letters of the compiler's message, at most
ROUGH = 1.5  # the most by which arithmetic exceeds the compiler on shipped configs (docs/plan.md)
NO_COST = "no cost: of GPUs only a bound of the time is predicted"
LEAST_SHARE = 1e-4  # of the bytes sent; smaller collectives are not listed


def screen(plan: Plan, changes: list[Change], price: float | None) -> str:
    """All of it.  `changes` are what would help most."""
    lines = [
        *_head(plan),
        *_memory(plan),
        *_work(plan),
        *_time(plan, price),
        *_advice(plan, changes),
    ]
    wrapped = (
        textwrap.wrap(line, WIDTH, subsequent_indent="     ", drop_whitespace=True) or [""]
        if len(line) > WIDTH
        else [line.rstrip()]
        for line in lines
    )
    return "\n".join(line for some in wrapped for line in some)


def _head(plan: Plan) -> Iterator[str]:
    e, count = plan.estimate, sum(num_params(plan.config.model).values())
    mesh = " x ".join(f"{name} {size}" for name, size in e.mesh.items() if size > 1) or "one device"
    devices = plan.topology.num_devices
    yield f"{plan.name} on {plan.topology.name}: {devices} devices, {mesh} ({plan.source})"
    yield (
        f"{count / 1e9:.2f} B parameters, {e.tokens_per_step:,} tokens per update"
        f" ({plan.tokens_per_device:,.0f} a device)"
    )


def _memory(plan: Plan) -> Iterator[str]:
    m, total = plan.memory, plan.memory.total
    yield ""
    yield f"memory of a device  {_gib(total)} of {_gib(plan.capacity)}  {_verdict(plan)}"
    rows = {
        "parameters": m.parameters,
        "optimizer state": m.optimizer_state,
        "gradients": m.gradients,
        "activations": m.activations,
        "temporaries": m.temporaries,
    }
    for name, size in rows.items():
        bar = "#" * round(BAR * min(1.0, max(size, 0) / plan.capacity))
        yield f"  {name:<18}{_gib(size):>12}  {size / plan.capacity:6.1%}  {bar}"
    if (said := refusal(plan)) is not None:
        yield f"the compiler: {said}"


def _verdict(plan: Plan) -> str:
    if plan.fits:
        return "FITS"
    excess = "" if plan.excess is None else f", {_gib(plan.excess)} too much"
    if plan.is_refused:
        return f"DOES NOT FIT{excess} by the compiler's count" if excess else "DOES NOT FIT"
    if plan.is_compiled or plan.memory.total > ROUGH * plan.capacity:
        return f"DOES NOT FIT{excess}"
    return f"MAY NOT FIT{excess} by arithmetic, which is rough: the compiler decides"


def refusal(plan: Plan) -> str | None:
    """What the compiler said when it refused the program, in one line; None if it did not."""
    if plan.too_much is None:
        return None
    return plan.too_much.rpartition("RESOURCE_EXHAUSTED: ")[2].partition("\n")[0][:SAID]


def _work(plan: Plan) -> Iterator[str]:
    reading = plan.reading
    recomputed = 1 - plan.useful_frac
    yield ""
    yield "work of a device, per update"
    yield (
        f"  model FLOPs {_flops(plan.model_flops)}, executed {_flops(plan.executed_flops)}"
        f": {plan.useful_frac:.1%} useful, {recomputed:.1%} extra"
    )
    if reading is None and plan.topology.chip.is_tpu:
        w = plan.estimate.work
        yield f"  HBM about {w.hbm_bytes / 1e9:,.0f} GB, wire about {w.wire_bytes / 1e9:,.1f} GB"
    if reading is not None:
        yield from kernels_and_traffic(reading)
    yield from collective_lines(plan.collectives)


def collective_lines(collectives: tuple[CollectiveSum, ...]) -> Iterator[str]:
    """One for each kind and its mesh axes."""
    sent = sum(c.wire_bytes for c in collectives)
    for c in collectives:
        if c.wire_bytes > LEAST_SHARE * sent:
            over = ",".join(c.axes) or "none"
            yield (
                f"  {c.kind:<18}{over:<12}{c.num_run:>7,.0f} x  {c.wire_bytes / 1e9:>8,.2f} GB"
                f"  {c.seconds * 1e3:9,.1f} ms  {c.async_bytes / c.wire_bytes:.0%} async"
            )


def kernels_and_traffic(reading: Reading) -> Iterator[str]:
    for k in reading.kernels:
        flops = "unknown" if k.flops is None else _flops(k.flops)
        yield f"  {k.kernel:<24}{k.num_run:>7,.0f} x  {flops:>10}  {k.seconds * 1e3:9,.1f} ms"
    host = f", hosts' memory {gb:,.1f} GB" if (gb := reading.host_bytes / 1e9) else ""
    yield f"  HBM {reading.hbm_bytes / 1e9:,.0f} GB, wire {reading.wire_bytes / 1e9:,.2f} GB{host}"
    if reading.unknown_loops:
        yield (
            f"  AT LEAST: nobody says how often {', '.join(reading.unknown_loops)} turns; its work, bytes"
            " and time are counted once"
        )


def _time(plan: Plan, price: float | None) -> Iterator[str]:
    fastest, best, slowest = plan.step_s
    steps = plan.config.train.num_steps
    yield ""
    yield "predicted                 step       MFU    tokens/s  tokens/s/chip"
    rows = [("perfect overlap", fastest), ("best estimate", best), ("no overlap", slowest)]
    for name, step_s in rows:
        if step_s is not None:
            rate = plan.tokens_per_s(step_s)
            yield (
                f"  {name:<16}{_time_of(step_s):>12}  {plan.mfu(step_s):7.1%}  {rate:>11,.0f}"
                f"  {rate / plan.topology.num_chips:>11,.0f}"
            )
    if (middle := plan.middle_s) is None:
        if price is not None:
            yield f"  {NO_COST}"
        return
    hours = plan.chip_hours(middle)
    cost = "" if price is None else f", cost {hours * price:,.0f} at {price:g} per chip-hour"
    yield (
        f"  {steps:,} updates, {plan.total_tokens / 1e9:,.1f} B tokens: predicted"
        f" {plan.days:,.2f} days"
    )
    yield f"  {hours:,.0f} chip-hours{cost}"


def _advice(plan: Plan, changes: list[Change]) -> Iterator[str]:
    yield ""
    yield f"binds: {binds(plan)}"
    for i, change in enumerate(changes, 1):
        yield f"{i}. {change.what}"
        yield f"     {change.effect}"
    yield f"MFU counts model FLOPs: {FORMULA.partition(';')[0]}"


def _gib(size: float) -> str:
    return f"{size / GIB:,.2f} GiB"


def _flops(n: float) -> str:
    return f"{n / 1e12:,.1f} TF"


def _time_of(seconds: float) -> str:
    return f"{seconds:,.2f} s" if seconds >= 10 else f"{seconds * 1e3:,.1f} ms"
