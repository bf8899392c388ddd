# SPDX-License-Identifier: Apache-2.0
"""The faults of the suite, each in three severities from slight to gross, and the healthy runs.

A kind is a function of (severity 0..2, rng) to a plant; the rng places it in the run.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxlm.bench.faults import batches
from jaxlm.bench.faults.plant import Plant
from jaxlm.bench.faults.world import BASE_LR, NUM_STEPS, WARMUP

Rng = np.random.Generator
Kind = Callable[[int, Rng], Plant]
PARTS = ("layer_0", "layer_1")


def _pick(severity: int, *values: Any) -> Any:
    return values[severity]


def _after(
    begin: int, name: str, value: Callable[[int], float]
) -> Callable[[int], dict[str, float]]:
    """A knob that follows `value` of the updates since `begin`."""
    return lambda step: {name: value(step - begin)} if step >= begin else {}


def _part(rng: Rng) -> str:
    return PARTS[int(rng.integers(len(PARTS)))]


def _lr(factor: float, warmup: int = WARMUP) -> dict[str, Any]:
    return {"optim.peak_lr": BASE_LR * factor, "optim.warmup_steps": warmup}


def _divergence(s: int, rng: Rng) -> Plant:
    at, size = int(rng.integers(60, 110)), _pick(s, 2.0, 8.0, float("nan"))
    return Plant(knob=lambda step: {"kick": size} if at <= step < at + 4 else {})


def _spike_isolated(s: int, rng: Rng) -> Plant:
    at = int(rng.integers(60, 100))
    return Plant(knob=lambda step: {"kick": _pick(s, 1.4, 1.8, 2.4)} if step == at else {})


def _spike_recurring(s: int, rng: Rng) -> Plant:
    at = set((rng.permutation(9)[: _pick(s, 4, 5, 7)] * 13 + 30 + rng.integers(0, 8)).tolist())
    size = _pick(s, 1.8, 2.4, 3.2)
    undone = {at_once + 1 for at_once in at}  # what a glitch in a collective would do
    return Plant(knob=lambda step: {"kick": size * ((step in at) - (step in undone))})


def _spike_data(s: int, rng: Rng) -> Plant:
    at = set(rng.choice(np.arange(30, NUM_STEPS - 5), _pick(s, 4, 6, 10), replace=False).tolist())
    return Plant(batch=batches.garbage(lambda step: step in at, _pick(s, 0.5, 1.0, 1.0)))


def _schedule(s: int, rng: Rng) -> Plant:
    jump = int(rng.integers(50, 100))
    slight = lambda step: 1.1
    no_warmup = lambda step: max(1.0, WARMUP / step)
    return Plant(lr=_pick(s, slight, no_warmup, lambda step: 3.0 if step > jump else 1.0))


def _gradient(end: tuple[float, float, float]) -> Kind:
    def kind(s: int, rng: Rng) -> Plant:
        begin, name = int(rng.integers(30, 60)), f"grad_scale@{_part(rng)}"
        rate = np.log(end[s]) / 60
        return Plant(knob=_after(begin, name, lambda n: float(np.exp(rate * min(n, 60)))))

    return kind


def _frozen(s: int, rng: Rng) -> Plant:
    begin = _pick(s, 90, 45, 1)
    return Plant(knob=_after(begin, f"update_scale@{_part(rng)}", lambda n: 0.0))


def _update_ratio(s: int, rng: Rng) -> Plant:
    size = _pick(s, 8.0, 0.03, 25.0)
    return Plant(knob=_after(1, f"update_scale@{_part(rng)}", lambda n: size))


def _optimizer_lost(s: int, rng: Rng) -> Plant:
    first = int(rng.integers(35, 60))
    at = _pick(s, (first + 45,), (first,), (first, first + 30, first + 60))
    return Plant(forgets_at=at, resumed_at=at)


def _throughput(s: int, rng: Rng) -> Plant:
    begin, factor = int(rng.integers(50, 100)), _pick(s, 1.25, 1.7, 3.0)
    return Plant(slower=lambda step: factor if step >= begin else 1.0)


def _starved(s: int, rng: Rng) -> Plant:
    begin, share = int(rng.integers(1, 60)), _pick(s, 0.3, 0.8, 3.0)
    return Plant(waits=lambda step: share if step >= begin else 0.0)


def _straggler(s: int, rng: Rng) -> Plant:
    share, factor = _pick(s, (0.06, 3.0), (0.1, 4.0), (0.15, 8.0))
    at = set(rng.choice(np.arange(2, NUM_STEPS), int(share * NUM_STEPS), replace=False).tolist())
    return Plant(slower=lambda step: factor if step in at else 1.0)


def _warmup(s: int, rng: Rng) -> Plant:
    return Plant(changes=_lr(_pick(s, 8.0, 12.0, 20.0), warmup=0))


FAULTS: Mapping[str, Kind] = {
    "divergence": _divergence,
    "loss_spike_isolated": _spike_isolated,
    "loss_spike_recurring": _spike_recurring,
    "loss_spike_data": _spike_data,
    "lr_too_high": lambda s, rng: Plant(changes=_lr(_pick(s, 20.0, 50.0, 150.0))),
    "lr_too_low": lambda s, rng: Plant(changes=_lr(_pick(s, 1 / 15, 1 / 40, 1 / 120))),
    "schedule_mismatch": _schedule,
    "warmup_too_short": _warmup,
    "gradient_explosion": _gradient((30.0, 300.0, 3e3)),
    "gradient_vanishing": _gradient((1e-3, 1e-5, 1e-7)),
    "frozen_layer": _frozen,
    "update_ratio_off": _update_ratio,
    "attention_logit_growth": lambda s, rng: Plant(
        knob=_after(20, "qk_growth", lambda n: _pick(s, 0.012, 0.018, 0.03))
    ),
    "output_logit_drift": lambda s, rng: Plant(z_loss=_pick(s, -7e-3, -1e-2, -2e-2)),
    "bf16_stagnation": lambda s, rng: Plant(
        knob=lambda step: {"is_bf16": 1.0}, changes=_lr(_pick(s, 1.0, 0.5, 0.25))
    ),
    "overfitting": lambda s, rng: Plant(corpus=f"small_{_pick(s, 40, 20, 10)}"),
    "duplicated_data": lambda s, rng: Plant(batch=batches.duplicated(_pick(s, 0.25, 0.5, 0.9))),
    "unshuffled_data": lambda s, rng: Plant(batch=batches.in_storage_order(_pick(s, 64, 16, 1))),
    "validation_leak": lambda s, rng: Plant(batch=batches.leaked(_pick(s, 0.05, 0.15, 0.4))),
    "target_shift": lambda s, rng: Plant(
        batch=_pick(s, batches.shifted(1, 0.5), batches.shifted(1), batches.shifted(-1))
    ),
    "loss_mask": lambda s, rng: Plant(
        batch=_pick(s, batches.unmasked(0.3), batches.unmasked(0.7), batches.trained_on_padding(0.5))
    ),
    "bpb_accounting": lambda s, rng: Plant(
        judged=lambda sums: sums._replace(bytes=sums.bytes * _pick(s, 1.2, 1.6, 4.0))
    ),
    "optimizer_state_lost": _optimizer_lost,
    "throughput_fall": _throughput,
    "data_starvation": _starved,
    "straggler": _straggler,
    "recompilation": lambda s, rng: Plant(
        compiles=lambda step: int(step % _pick(s, 12, 6, 3) == 0)
    ),
    "memory_creep": lambda s, rng: Plant(memory_mib=_pick(s, 0.5, 1.5, 5.0)),
}  # fmt: skip


def _restarted(s: int, rng: Rng) -> Plant:
    return Plant(steps_before=NUM_STEPS // 2)


def _benign_spike(s: int, rng: Rng) -> Plant:
    at = int(rng.integers(40, NUM_STEPS - 20))
    return Plant(batch=batches.garbage(lambda step: step == at))


HEALTHY: Mapping[str, Kind] = {
    "plain": lambda s, rng: Plant(),
    "constant": lambda s, rng: Plant(changes={"optim.schedule": "constant"}, model="constant"),
    "floor": lambda s, rng: Plant(changes={"optim.final_lr_frac": 0.2}),
    "other_betas": lambda s, rng: Plant(changes={"optim.b2": 0.99, "optim.weight_decay": 0.3}),
    "higher_lr": lambda s, rng: Plant(changes=_lr(1.6)),
    "lower_lr": lambda s, rng: Plant(changes=_lr(0.6)),
    "benign_spike": _benign_spike,
    "resumed": lambda s, rng: Plant(resumed_at=(int(rng.integers(30, 120)),)),
    "restarted": _restarted,
    "small_model": lambda s, rng: Plant(model="small"),
    "small_batch": lambda s, rng: Plant(model="small_batch"),
    "noisy_machine": lambda s, rng: Plant(noise=0.12),
}


def plant_of(kind: str, severity: int, seed: int) -> Plant:
    """The plant of one run.  Raises KeyError for an unknown kind."""
    rng = np.random.default_rng([list({**FAULTS, **HEALTHY}).index(kind), severity, seed])
    if kind in FAULTS:
        return dataclasses.replace(FAULTS[kind](severity, rng), cause=kind)
    return HEALTHY[kind](0, rng)
