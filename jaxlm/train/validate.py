# SPDX-License-Identifier: Apache-2.0
"""Validation over every corpus, on the mesh."""

from jaxlm.core.types import Params
from jaxlm.data.loader import BatchSource
from jaxlm.evaluate import evaluate
from jaxlm.sharding.feed import local_rows, to_global
from jaxlm.train.setup import Trainer


def validate(
    trainer: Trainer, params: Params, source: BatchSource, max_batches: int | None = None
) -> dict[str, float]:
    """Metrics over the validation text of all corpora; `eval/bpb@name` too when there are several.

    max_batches: of each corpus; None: every row once.
    """
    num_rows = source.config.batch_size
    rows = local_rows(trainer.mesh, num_rows)
    totals = {}
    for corpus in source.config.corpora:
        batches = source.valid_batches(corpus.name, rows, limit=max_batches)
        placed = (to_global(batch, trainer.mesh, num_rows, rows) for batch in batches)
        totals[corpus.name] = evaluate(trainer.eval_step, params, placed)
    first, *others = totals.values()
    metrics = sum(others, first).metrics()
    for name, total in totals.items() if others else ():
        metrics |= {f"{metric}@{name}": value for metric, value in total.metrics().items()}
    return metrics
