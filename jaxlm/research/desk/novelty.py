# SPDX-License-Identifier: Apache-2.0
"""Whether a change was tried before, however it was written, before any compute is spent.

Two changes are compared by what they do to the resolved config, not by their text: `2e-3` and
`2*1e-3`, another order, a field set to what it already is, or one that nothing reads (the window
of a model without local layers) make no difference; nor does a number moved by less than a tenth.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

from jaxlm.config import RunConfig, identity

Difference = dict[str, Any]  # "optim.peak_lr" -> value; only what differs and is read

NEAR = 1.1  # numbers closer than this factor are one try: seeds would hide the rest

# fields that only some settings read
_READ: dict[str, Callable[[RunConfig], bool]] = {
    "optim.muon_lr": lambda c: c.optim.name == "muon",
    "optim.muon_momentum": lambda c: c.optim.name == "muon",
    "optim.muon_steps": lambda c: c.optim.name == "muon",
    "optim.b1": lambda c: c.optim.name != "adafactor",
    "optim.eps": lambda c: c.optim.name != "lion",
    "optim.decay_frac": lambda c: c.optim.schedule == "wsd",
    "optim.final_lr_frac": lambda c: c.optim.schedule != "constant",
    "model.window": lambda c: "local" in c.model.layer_pattern,
    "model.rope_factor": lambda c: c.model.rope_scaling != "none",
    "model.rope_original_len": lambda c: c.model.rope_scaling != "none",
}
# fields that name the same number in two ways
_SAME: dict[str, Callable[[RunConfig], Any]] = {
    "model.num_kv_heads": lambda c: c.model.kv_heads,
    "model.head_dim": lambda c: c.model.head_width,
}
_SEEDS = ("train.seed", "data.seed")


def difference(base: RunConfig, config: RunConfig) -> Difference:
    """What `config` computes with that `base` does not."""
    before, after = _facts(base), _facts(config)
    return {k: v for k, v in after.items() if before.get(k) != v} | {
        k: None for k in before if k not in after
    }


def is_repeat(new: Difference, old: Difference) -> bool:
    """Whether the two are one try."""
    return new.keys() == old.keys() and all(_is_near(new[k], old[k]) for k in new)


def earlier(new: Difference, tried: Iterable[tuple[str, Difference]]) -> str | None:
    """Name of the first that `new` repeats."""
    return next((name for name, old in tried if is_repeat(new, old)), None)


def _facts(config: RunConfig) -> dict[str, Any]:
    facts = dict(_flat(identity(config)))
    for field, value in _SAME.items():
        facts[field] = value(config)
    unread = [field for field, is_read in _READ.items() if not is_read(config)]
    return {k: v for k, v in facts.items() if k not in unread and k not in _SEEDS}


def _flat(values: dict[str, Any], path: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{path}{name}.")
        else:
            yield path + name, value


def _is_near(a: Any, b: Any) -> bool:
    are_numbers = all(isinstance(x, int | float) and not isinstance(x, bool) for x in (a, b))
    if a == b or not are_numbers or a * b <= 0:
        return bool(a == b)
    return abs(math.log(a / b)) < math.log(NEAR)
