# SPDX-License-Identifier: Apache-2.0
"""What runs inside the sandbox, on a copy of the code that holds the patch: trains, or predicts.

Nothing here is trusted, since the patch shares its process.  It has what comes over the pipe and its
folder: no text, no validation rows, no clock that anybody believes.  host.py is the other end.

    train    batch (five arrays) -> loss (f32), again and again; at the end params.npy
    predict  columns (int32: how many), then each column of tokens (B,) -> log-probabilities (B, V)

Legend: B rows  T positions  V vocabulary  D model width
"""

import json
import os
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.config import RunConfig
from jaxlm.core.typed import from_dict
from jaxlm.core.types import Params
from jaxlm.research.patch.products import product_flops
from jaxlm.sharding.feed import local_rows, to_global
from jaxlm.train.setup import Trainer, build_trainer, on_mesh

BATCH = ("tokens", "targets", "segment_ids", "positions", "weights")  # as they follow each other
AGREE = 1e-3  # nats: as far as predicting from a cache may lie from predicting from whole rows
Predict = Callable[
    [np.ndarray, int], jax.Array
]  # tokens (B, T), whose first t + 1 columns are known


def main(folder: Path) -> None:
    spec = json.loads((folder / "spec.json").read_text())
    # what the patch prints is no answer
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    config = from_dict(RunConfig, spec["config"])
    trainer = build_trainer(config, np.ones(spec["vocab"], np.int32))
    with on_mesh(trainer.mesh, trainer.rules):
        if spec["what"] == "train":
            train(trainer, config, folder, sys.stdin.buffer, answers)
        else:
            predict(trainer, config, Path(spec["params"]), spec["rows"], sys.stdin.buffer, answers)


def train(
    trainer: Trainer, config: RunConfig, folder: Path, batches: IO[bytes], answers: IO[bytes]
) -> None:
    """The first answer is a line of JSON: parameters, and FLOPs of an update's products."""
    state, step = trainer.fresh_state(config), None
    B = config.data.batch_size
    for batch in _batches(config, batches):
        placed = to_global(batch, trainer.mesh, B, local_rows(trainer.mesh, B))
        if step is None:
            traced = trainer.step.trace(state, placed)  # type: ignore[attr-defined]
            step = traced.lower().compile()
            claims = {
                "params": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
                "flops": product_flops(traced.jaxpr.jaxpr),
            }
            answers.write(json.dumps(claims).encode() + b"\n")
        state, metrics = step(state, placed)
        applied = bool(metrics["update/applied"])
        answers.write(struct.pack("<f", float(metrics["train/loss_nats"]) if applied else np.nan))
        answers.flush()
    with open(folder / "params.npy", "wb") as file:
        for leaf in jax.tree.leaves(jax.device_get(trainer.eval_params(state))):
            np.save(file, leaf, allow_pickle=False)


def _batches(config: RunConfig, pipe: IO[bytes]) -> Iterator[dict[str, np.ndarray]]:
    shape = (config.data.batch_size, config.data.seq_len)
    size = 4 * shape[0] * shape[1]
    while len(data := pipe.read(size * len(BATCH))) == size * len(BATCH):
        parts = [data[i * size : (i + 1) * size] for i in range(len(BATCH))]
        types = {name: np.float32 if name == "weights" else np.int32 for name in BATCH}
        yield {
            name: np.frombuffer(part, types[name]).reshape(shape)
            for name, part in zip(BATCH, parts, strict=True)
        }


def predict(
    trainer: Trainer,
    config: RunConfig,
    params: Path,
    rows: int,
    pipe: IO[bytes],
    answers: IO[bytes],
) -> None:
    """From a cache where that says the same as whole rows, else from whole rows, once per column."""
    loaded = _load(trainer, params)
    whole, T = _from_whole_rows(trainer, loaded), config.data.seq_len
    known_BT = np.zeros((rows, T), np.int32)
    cached = _from_cache(trainer, loaded, rows, T)
    chosen = cached if _agree(cached, whole, rows, T, config.model.vocab_size) else whole
    while len(header := pipe.read(4)) == 4:
        known_BT[:] = 0
        for t in range(struct.unpack("<i", header)[0]):
            known_BT[:, t] = np.frombuffer(pipe.read(4 * rows), np.int32)
            answers.write(np.asarray(chosen(known_BT, t), np.float32).tobytes())
            answers.flush()


def _load(trainer: Trainer, path: Path) -> Params:
    shapes = jax.eval_shape(trainer.eval_params, trainer.abstract_state)
    with open(path, "rb") as file:
        leaves = [jnp.asarray(np.load(file, allow_pickle=False)) for _ in jax.tree.leaves(shapes)]
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)


def _from_whole_rows(trainer: Trainer, params: Params) -> Predict:
    model = trainer.model

    @jax.jit
    def at(params: Params, tokens_BT: jax.Array, t: jax.Array) -> jax.Array:
        hidden_BTD = model.apply(params, tokens_BT)
        one_BTD = jax.lax.dynamic_slice_in_dim(hidden_BTD, t, 1, axis=1)
        return jax.nn.log_softmax(model.logits(params, one_BTD)[:, 0])

    return lambda tokens_BT, t: at(params, tokens_BT, jnp.int32(t))


def _from_cache(trainer: Trainer, params: Params, rows: int, num_slots: int) -> Predict:
    model, held = trainer.model, dict[str, Any]()

    @jax.jit
    def step(params: Params, tokens_BT: jax.Array, caches: Any, t: jax.Array) -> tuple[Any, Any]:
        hidden_BTD, caches = model.apply_cached(params, tokens_BT, caches, jnp.full(rows, t))
        return jax.nn.log_softmax(model.logits(params, hidden_BTD)[:, 0]), caches

    def at(tokens_BT: np.ndarray, t: int) -> jax.Array:
        caches = held["caches"] if t else model.init_cache(rows, num_slots)
        found_BV, held["caches"] = step(params, tokens_BT[:, t : t + 1], caches, jnp.int32(t))
        return found_BV

    return at


def _agree(cached: Predict, whole: Predict, rows: int, T: int, vocab: int) -> bool:
    """On made-up rows.  A patch may break the cache: that costs time, and nothing else."""
    tokens_BT = np.random.default_rng(0).integers(0, vocab, (rows, T)).astype(np.int32)
    try:
        for t in range(T):
            found_BV = cached(tokens_BT, t)
            if t in (0, 1, T // 2, T - 1) and not np.allclose(
                found_BV, whole(tokens_BT, t), 0, AGREE
            ):
                return False
    except Exception:  # noqa: BLE001  whatever the patch raises there
        return False
    return True
