# SPDX-License-Identifier: Apache-2.0
"""Every cause that a diagnosis may name, what it means, and what follows from it.

`explains` lists the causes that a cause brings about: where both are found, the first stands first
and the other counts as its consequence (rank.py).  Standard library only.
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal

Severity = Literal["note", "warning", "critical"]
SEVERITIES: tuple[Severity, ...] = ("note", "warning", "critical")


@dataclasses.dataclass(frozen=True)
class Cause:
    """One entry of the registry."""

    meaning: str
    explains: tuple[str, ...] = ()


_INSTABILITY = (
    "divergence", "loss_spike_isolated", "loss_spike_recurring", "gradient_explosion",
    "attention_logit_growth", "output_logit_drift", "update_ratio_off",
)  # fmt: skip
_WRONG_LOSS = (*_INSTABILITY, "overfitting", "validation_leak", "lr_too_low", "gradient_vanishing")

CAUSES: Mapping[str, Cause] = {
    "target_shift": Cause("targets are not the tokens that follow", _WRONG_LOSS),
    "loss_mask": Cause(
        "padding is trained on, or real positions are left out of the loss",
        (*_WRONG_LOSS, "bpb_accounting"),
    ),
    "schedule_mismatch": Cause(
        "the learning rate is not the one that the config asks for",
        (*_INSTABILITY, "lr_too_high", "lr_too_low", "warmup_too_short"),
    ),
    "optimizer_state_lost": Cause(
        "the run went on without the optimizer's moments", (*_INSTABILITY, "warmup_too_short")
    ),
    "validation_leak": Cause("validation text is in the training batches", ("overfitting", "duplicated_data")),
    "duplicated_data": Cause(
        "the same pieces of text come again within an epoch",
        ("overfitting", "unshuffled_data", *_INSTABILITY),
    ),
    "unshuffled_data": Cause(
        "neighbouring batches are alike: the rows come in an order",
        ("loss_spike_data", "loss_spike_recurring", "loss_spike_isolated", "gradient_explosion"),
    ),
    "loss_spike_data": Cause(
        "the loss jumps where the text is unlike the rest",
        ("loss_spike_isolated", "loss_spike_recurring", "gradient_explosion", "divergence"),
    ),
    "lr_too_high": Cause("the learning rate is too high", (*_INSTABILITY, "warmup_too_short")),
    "warmup_too_short": Cause("the first updates are too large", _INSTABILITY),
    "bf16_stagnation": Cause(
        "parameters are held in bfloat16, so that small updates are lost",
        ("frozen_layer", "lr_too_low", "update_ratio_off"),
    ),
    "update_ratio_off": Cause(
        "one group's updates are out of proportion to its parameters",
        ("divergence", "loss_spike_isolated", "loss_spike_recurring", "gradient_explosion",
         "output_logit_drift", "attention_logit_growth"),
    ),
    "attention_logit_growth": Cause(
        "attention logits grow until softmax saturates",
        (
            "divergence", "gradient_explosion", "gradient_vanishing", "loss_spike_recurring",
            "loss_spike_isolated",
        ),
    ),
    "output_logit_drift": Cause(
        "the log-normaliser of the output drifts away",
        ("divergence", "gradient_explosion", "loss_spike_recurring", "loss_spike_isolated"),
    ),
    "frozen_layer": Cause("a layer or group does not learn"),
    "gradient_vanishing": Cause("one group's gradient vanishes", ("frozen_layer",)),
    "gradient_explosion": Cause(
        "one group's gradient explodes",
        ("divergence", "loss_spike_isolated", "loss_spike_recurring"),
    ),
    "loss_spike_recurring": Cause(
        "the loss jumps again and again", ("loss_spike_isolated", "divergence")
    ),
    "divergence": Cause(
        "the loss left its course and did not come back, or stopped being finite",
        ("loss_spike_isolated",),
    ),
    "loss_spike_isolated": Cause("the loss jumped once and took long to come back"),
    "lr_too_low": Cause("the learning rate is too low: the run has not converged"),
    "overfitting": Cause("training text is learnt by heart: validation gets worse"),
    "bpb_accounting": Cause("bits per byte do not follow from the loss and the bytes of the text"),
    "recompilation": Cause("the step is compiled again and again", ("throughput_fall", "straggler")),
    "data_starvation": Cause("the loop waits for its batches", ("throughput_fall", "straggler")),
    "memory_creep": Cause("host memory grows with every update", ("throughput_fall",)),
    "throughput_fall": Cause("updates became slower and stayed so", ("straggler",)),
    "straggler": Cause("some updates take far longer than the rest"),
}  # fmt: skip
