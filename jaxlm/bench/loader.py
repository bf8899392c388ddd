# SPDX-License-Identifier: Apache-2.0
"""The loader alone: batches from disk into host arrays."""

from jaxlm.config import RunConfig
from jaxlm.data.loader import BatchSource, measure_loader
from jaxlm.data.prepare import prepare


def bench_loader(config: RunConfig, num_batches: int) -> dict[str, str]:
    """Name -> text of a table."""
    source = BatchSource(prepare(config.data), config.data)
    runs = [measure_loader(source, num_batches) for _ in range(3)]
    best = max(runs, key=lambda run: run.tokens_per_s)
    return {
        "tokens/s": f"{best.tokens_per_s:,.0f} (best of {len(runs)} runs of {num_batches} batches)",
        "batch": f"{config.data.batch_size} rows x {config.data.seq_len}",
        "padding": f"{best.padding:.2%}",
    }
