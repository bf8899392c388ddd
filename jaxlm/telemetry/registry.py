# SPDX-License-Identifier: Apache-2.0
"""Every metric that a run may write: its unit, which way is better, how it is reduced.

Standard library only.  A name that is not here is refused by the writer, so a reader of
telemetry.jsonl never meets a number that nothing explains.
"""

import dataclasses
from typing import Literal

Direction = Literal["lower", "higher", "none"]


@dataclasses.dataclass(frozen=True)
class MetricSpec:
    """One metric.  `reduction` says how it came from devices and micro-batches."""

    unit: str
    direction: Direction
    reduction: Literal["token mean", "sum", "global", "last"]
    meaning: str


METRICS: dict[str, MetricSpec] = {
    "train/loss_nats": MetricSpec(
        "nats/token", "lower", "token mean", "cross-entropy of the batch before the update"
    ),
    "train/z_loss": MetricSpec(
        "nats^2/token", "none", "token mean", "squared log-normaliser, unweighted"
    ),
    "train/accuracy_frac": MetricSpec(
        "fraction", "higher", "token mean", "positions whose likeliest token was right"
    ),
    "train/tokens": MetricSpec("tokens", "none", "sum", "targets in the batch that count"),
    "update/applied": MetricSpec(
        "0 or 1", "higher", "global", "the update was finite and was applied"
    ),
    "grad/norm_l2": MetricSpec(
        "nats/token", "none", "global", "norm of the whole gradient before clipping"
    ),
    "param/norm_l2": MetricSpec("1", "none", "global", "norm of all parameters"),
    "update/ratio_rms": MetricSpec(
        "fraction", "none", "global", "rms of the update over rms of the parameters"
    ),
    "param/bf16_frac": MetricSpec(
        "fraction", "none", "global", "matrix entries that bfloat16 holds exactly"
    ),
    "update/below_bf16_frac": MetricSpec(
        "fraction", "none", "global", "matrix entries whose update bfloat16 would lose"
    ),
    "attention/logit_max": MetricSpec(
        "1", "none", "global", "largest attention logit of sampled queries, before the soft-cap"
    ),
    "optim/lr": MetricSpec("1", "none", "last", "learning rate of the update"),
    "router/expert_tokens": MetricSpec(
        "tokens",
        "none",
        "sum",
        "lists by layer and expert: tokens that chose it; every 10th update",
    ),
    "router/max_load": MetricSpec(
        "1", "lower", "sum", "tokens of the busiest expert over the mean; @layer_3: of that layer"
    ),
    "router/unused_frac": MetricSpec(
        "fraction", "lower", "sum", "experts that no token of the batch chose"
    ),
    "router/balance_loss": MetricSpec(
        "1", "lower", "token mean", "mean over layers of what is 1 when experts are used alike"
    ),
    "router/z_loss": MetricSpec(
        "nats^2/token", "none", "token mean", "squared log-normaliser of the routers, unweighted"
    ),
    "data/tokens_seen": MetricSpec("tokens", "none", "sum", "counted targets since the run began"),
    "data/epoch": MetricSpec(
        "epochs", "none", "last", "passes over the training rows, over all corpora"
    ),
    "data/batch_id": MetricSpec("1", "none", "last", "fingerprint of the batch's tokens, 53 bits"),
    "data/seen_frac": MetricSpec(
        "fraction", "none", "token mean", "tokens in pieces of text that were trained on before"
    ),
    "data/valid_frac": MetricSpec(
        "fraction", "lower", "token mean", "tokens in pieces of text that are validation text too"
    ),
    "data/shifted_frac": MetricSpec(
        "fraction", "lower", "token mean", "targets that are not the token that follows"
    ),
    "data/mask_error_frac": MetricSpec(
        "fraction", "lower", "token mean", "positions that count and should not, or the reverse"
    ),
    "data/unigram_nats": MetricSpec(
        "nats/token", "none", "token mean", "targets under the validation text's token frequencies"
    ),
    "data/bytes_per_token": MetricSpec(
        "bytes/token", "none", "token mean", "text that a target stands for"
    ),
    "eval/bpb": MetricSpec(
        "bits/byte", "lower", "global", "validation nats / (ln 2 * validation bytes)"
    ),
    "eval/loss_nats": MetricSpec("nats/token", "lower", "token mean", "validation cross-entropy"),
    "eval/accuracy_frac": MetricSpec(
        "fraction", "higher", "token mean", "validation positions predicted right"
    ),
    "eval/tokens": MetricSpec("tokens", "none", "sum", "validation targets scored"),
    "eval/bytes": MetricSpec("bytes", "none", "sum", "text bytes those targets stand for"),
    "perf/step_time_s": MetricSpec(
        "s", "lower", "last", "wall time from one update's metrics to the next's"
    ),
    "perf/tokens_per_s": MetricSpec(
        "tokens/s", "higher", "last", "positions trained per second, padding included"
    ),
    "perf/mfu_frac": MetricSpec(
        "fraction", "higher", "last", "model FLOPs per second / peak of the devices"
    ),
    "perf/data_wait_s": MetricSpec("s", "lower", "last", "time the loop waited for its batch"),
    "perf/host_memory_bytes": MetricSpec("bytes", "lower", "last", "memory of this process"),
    "perf/compiles": MetricSpec(
        "programs", "lower", "last", "compiled in this process since the run began"
    ),
}


def spec_of(name: str) -> MetricSpec:
    """The spec of a metric; `eval/bpb@web` is eval/bpb of one corpus (or layer).  Raises KeyError if unknown."""
    return METRICS[name.partition("@")[0]]
