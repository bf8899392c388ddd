# SPDX-License-Identifier: Apache-2.0
"""A policy as a real campaign needs it: search, then the gate, then fresh seeds.

What a policy claims from the runs that selected is not claimed: whatever was kept is measured on seeds
that nothing has used (confirm.py), at the larger scale if there is a gate.
"""

from collections.abc import Sequence

from jaxlm.research.policies.base import Knowledge, Plan, Purse, relay
from jaxlm.research.policies.catalogue import CONFIRM, policy
from jaxlm.research.policies.confirm import confirm
from jaxlm.research.policies.promotion import SCALE, promote

GATE = 0.4  # of the budget
PAIRS = 3  # fresh seeds of baseline and final arm: the interval rests on these alone
APART = 1 << 16  # between the seeds of search, gate and confirmation


def whole(
    name: str, ideas: Sequence[str], budget: float, seed: int, knowledge: Knowledge, *,
    has_gate: bool = False,
) -> Plan:  # fmt: skip
    """name: of the policy.  kept: what passed all of it."""
    search = policy(name)
    if name in CONFIRM and not has_gate:
        return (yield from search(ideas, budget, seed, knowledge))
    purse = Purse(budget, knowledge.scale_costs)
    scale = SCALE if has_gate else 0
    reserve = 2 * PAIRS * knowledge.scale_costs[scale]
    share = (budget - reserve) * (1 - GATE if has_gate else 1)
    found = yield from relay(search(ideas, max(share, 1.0), seed, knowledge), purse)
    kept = found.kept
    if has_gate and kept:
        left = purse.left - reserve
        gate = promote(sorted(kept), left, seed + APART, knowledge) if left > 0 else None
        kept = (yield from relay(gate, purse)).kept if gate else frozenset()
    pairs = min(PAIRS, int(purse.left / (2 * knowledge.scale_costs[scale])))
    kept = kept if pairs else frozenset()
    return (
        yield from confirm(purse, kept, seed + 2 * APART, pairs, found.effects, found.notes, scale)
    )
