# SPDX-License-Identifier: Apache-2.0
"""Detectors of gradients, updates and logits, by layer and by group of parameters."""

import math
from collections.abc import Iterator

from jaxlm.research.diagnose.cite import cite, finding
from jaxlm.research.diagnose.course import on_course_until
from jaxlm.research.diagnose.findings import Evidence, Finding
from jaxlm.research.diagnose.statistics import compute
from jaxlm.research.diagnose.telemetry import Telemetry

EXPLODES, VANISHES = 12.0, 0.03  # late over early norm of one part's gradient
STEADY = (0.2, 4.0)  # the same of the parts that it is compared with
OUT_OF_PROPORTION = 4.0  # of one layer's update ratio to another's
SATURATED = 50.0  # an attention logit: softmax gives all to one key


def gradient_by_group(t: Telemetry) -> Iterator[Finding]:
    """One part's gradient grows or shrinks by orders while another's does neither."""
    parts = [f"grad/norm_l2@{part}" for part in t.parts("grad/norm_l2")]
    end = on_course_until(t)
    steady = [
        e
        for p in parts
        if cite(t, p, "growth", "above", STEADY[0], last=end)
        and (e := cite(t, p, "growth", "below", STEADY[1], last=end))
    ]
    explodes = _worst([cite(t, p, "growth", "above", EXPLODES, last=end) for p in parts])
    vanishes = _worst(
        [cite(t, p, "growth", "below", VANISHES, last=end) for p in parts], least=True
    )
    if explodes and steady:
        yield finding(
            "gradient_explosion", "critical", 0.8, [explodes, steady[0]],
            "Clip the gradient of that group, or give it a lower learning rate, from before the growth.",
            _group_lr(explodes, 0.1),
            [cite(t, "train/loss_nats", "rise", "below", -0.5)],
        )  # fmt: skip
    if vanishes and steady:
        yield finding(
            "gradient_vanishing", "warning", 0.8, [vanishes, steady[0]],
            "Train for a few updates with that group at ten times the learning rate.",
            _group_lr(vanishes, 10.0),
        )  # fmt: skip


def frozen_layer(t: Telemetry) -> Iterator[Finding]:
    """A part whose parameters no longer change."""
    for part in t.parts("update/ratio_rms"):
        still = cite(t, f"update/ratio_rms@{part}", "late", "below", 1e-9)
        if still and cite(t, "optim/lr", "late", "above", 0.0):
            gradient = cite(t, f"grad/norm_l2@{part}", "late", "above", 1e-12)
            yield finding(
                "frozen_layer", "critical", 0.9, [still, gradient],
                "Look whether the optimizer's groups or a mask leave that part out.",
            )  # fmt: skip
            return


def update_ratio(t: Telemetry) -> Iterator[Finding]:
    """A layer whose updates are many times larger or smaller than those of the typical layer."""
    layers = [p for p in t.parts("update/ratio_rms") if p.startswith("layer_")]
    sizes = {p: compute("median", t.get(f"update/ratio_rms@{p}").values) or 0.0 for p in layers}
    alive = sorted((p for p in layers if sizes[p] > 0), key=lambda p: sizes[p])
    if len(alive) < 2:
        return
    for part, other in (
        (alive[-1], alive[(len(alive) - 1) // 2]),
        (alive[0], alive[len(alive) // 2]),
    ):
        if _has_own_cause(t, part) or _has_own_cause(t, other):
            continue
        ratio = f"update/ratio_rms@{part} / update/ratio_rms@{other}"
        large = cite(t, ratio, "median", "above", OUT_OF_PROPORTION)
        small = cite(t, ratio, "median", "below", 1 / OUT_OF_PROPORTION)
        if large or small:
            yield finding(
                "update_ratio_off", "warning", 0.75, [large or small],
                "Train with that layer's learning rate scaled back to the others' ratio.",
                _group_lr(large or small, 1 / OUT_OF_PROPORTION if large else OUT_OF_PROPORTION),
            )  # fmt: skip
            return


def _has_own_cause(t: Telemetry, part: str) -> bool:
    """A gradient that explodes or vanishes, or a frozen part: its updates only follow."""
    gradient = f"grad/norm_l2@{part}"
    return bool(
        cite(t, gradient, "growth", "above", EXPLODES)
        or cite(t, gradient, "growth", "below", VANISHES)
        or cite(t, f"update/ratio_rms@{part}", "late", "below", 1e-9)
    )


def attention_logits(t: Telemetry) -> Iterator[Finding]:
    """Attention logits beyond what softmax can tell apart, and still growing."""
    names = [f"attention/logit_max@{part}" for part in t.parts("attention/logit_max")]
    end = on_course_until(t)  # a jump of the loss blows the logits up too
    high = _worst([cite(t, n, "late", "above", SATURATED, last=end) for n in names])
    growing = high and cite(t, high.metric, "growth", "above", 3.0, last=end)
    if high and growing:
        yield finding(
            "attention_logit_growth", "critical", 0.8, [high, growing],
            "Train the same config with normalised queries and keys.",
            {"ModelConfig.qk_norm": "True"},
            [cite(t, "train/loss_nats", "rise", "below", -1.0)],
        )  # fmt: skip


def output_logits(t: Telemetry) -> Iterator[Finding]:
    """The squared log-normaliser leaves the neighbourhood of ln(V)^2."""
    usual = math.log(t.config.model.vocab_size) ** 2
    end = on_course_until(t)
    away = [
        cite(t, "train/z_loss", "late", "above", 1.8 * usual, last=end),
        cite(t, "train/z_loss", "late", "below", 0.12 * usual, last=end),
    ]
    if any(away):
        yield finding(
            "output_logit_drift", "warning", 0.75, away,
            "Train the same config with a z-loss.",
            {"OptimConfig.z_loss": "1e-4"},
        )  # fmt: skip


def bf16_stagnation(t: Telemetry) -> Iterator[Finding]:
    """Parameters that bfloat16 holds exactly, and updates that it would round away."""
    held = cite(t, "param/bf16_frac", "late", "above", 0.5)
    lost = cite(t, "update/below_bf16_frac", "late", "above", 0.2)
    if held:
        yield finding(
            "bf16_stagnation", "critical", 0.9 if lost else 0.7, [held, lost],
            "Hold the parameters in float32 and compute in bfloat16.",
            {"ModelConfig.compute_dtype": "'bfloat16'"},
        )  # fmt: skip


def _worst(found: list[Evidence | None], least: bool = False) -> Evidence | None:
    there = [e for e in found if e]
    if not there:
        return None
    return (min if least else max)(there, key=lambda e: e.value)


def _group_lr(evidence: Evidence | None, factor: float) -> dict[str, str]:
    """Layers share their parameters' paths, so only kinds of parameters can have a rate of their own."""
    part = evidence.metric.split(" ")[0].partition("@")[2] if evidence else ""
    if part not in ("attention", "mlp"):
        return {}
    return {
        "GroupConfig.pattern": f"'layers/.*/{part}/.*'",
        "GroupConfig.lr_scale": f"{factor:g}",
        "OptimConfig.groups": "(@GroupConfig(),)",
    }


DETECTORS = (
    gradient_by_group,
    frozen_layer,
    update_ratio,
    attention_logits,
    output_logits,
    bf16_stagnation,
)
