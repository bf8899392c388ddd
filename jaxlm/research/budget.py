# SPDX-License-Identifier: Apache-2.0
"""What runs cost, in FLOPs, tokens, seconds of training or full runs of the baseline.

Seconds are known once a pilot has run: an arm is taken to need its FLOPs at the pilot's speed.
"""

import dataclasses
import math
import re
from collections.abc import Iterable

from jaxlm.config import RunConfig, resolve
from jaxlm.core.errors import ConfigError
from jaxlm.research.records import BASELINE, Protocol

UNITS = ("flops", "tokens", "seconds", "runs")
SHORT = {"s": "seconds"}


@dataclasses.dataclass(frozen=True)
class Budget:
    """Of all runs of a campaign together."""

    amount: float
    unit: str  # of UNITS

    def __str__(self) -> str:
        return f"{self.amount:.3g} {self.unit}"


def run_flops(config: RunConfig) -> float:
    """Of one run: matrix products forward and backward, as everywhere (model/accounting.py)."""
    resolved = resolve(config, 1)
    return resolved.train_flops_per_token * resolved.total_tokens


def price(config: RunConfig, unit: str, flops_per_s: float | None = None) -> float | None:
    """Of one run, in `unit`; every run is one of "runs", and seconds need a speed."""
    if unit == "runs":
        return 1.0
    if unit == "tokens":
        return float(resolve(config, 1).total_tokens)
    flops = run_flops(config)
    return flops if unit == "flops" else flops / flops_per_s if flops_per_s else None


def parse(text: str) -> Budget:
    """From "2e15flops", "1e6 tokens", "600s" or "40runs".  Raises ConfigError for anything else."""
    match = re.fullmatch(r"([0-9.]+(?:e[+-]?\d+)?)\s*([a-z]+)", text.strip().lower())
    unit = SHORT.get(match[2], match[2]) if match else ""
    try:
        amount = float(match[1]) if match else 0.0
    except ValueError:
        amount = 0.0
    if unit not in UNITS or not 0 < amount < math.inf:
        raise ConfigError(
            f"--budget {text!r}: write a positive number and {', '.join(UNITS[:-1])} or {UNITS[-1]}, "
            "such as 2e15flops"
        )
    return Budget(amount, unit)


def cost(
    protocol: Protocol, runs: Iterable[tuple[str, int]], unit: str, flops_per_s: float | None = None
) -> float | None:
    """Of full runs, in `unit`; None in seconds while no speed is known."""
    flops = sum(protocol.flops_per_run[arm] for arm, _ in runs)
    if unit == "flops":
        return flops
    if unit == "tokens":
        return sum(protocol.tokens_per_run[arm] for arm, _ in runs)
    if unit == "seconds":
        return flops / flops_per_s if flops_per_s else None
    return flops / protocol.flops_per_run[BASELINE]


def check(
    protocol: Protocol, flops_per_s: float | None = None, spent: float = 0.0, after: float = 0.0
) -> None:
    """Raises ConfigError where the budget does not reach for all runs of a protocol.

    spent: by the stages before; after: what those to come need at least.  In the budget's unit.
    """
    if protocol.budget is None:
        return
    unit, runs = protocol.budget_unit, protocol.runs
    needed = cost(protocol, runs, unit, flops_per_s)
    if needed is None or spent + needed + after <= protocol.budget:
        return
    one = cost(
        protocol, [(a.name, 0) for a in (*protocol.arms, *protocol.curve)], unit, flops_per_s
    )
    more = f", {spent:.3g} were spent before" if spent else ""
    more += f", and a larger scale and fresh seeds {after:.3g} for one arm alone" if after else ""
    raise ConfigError(
        f"--budget {Budget(protocol.budget, unit)} is too small: {len(runs)} runs need {needed:.3g}"
        f"{more}; with one seed {one:.3g}; take fewer --seeds or arms, or a smaller "
        "TrainConfig.num_steps"
    )
