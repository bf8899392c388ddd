# SPDX-License-Identifier: Apache-2.0
"""What the tests against float64 share: parameters, packed batches, errors per array.

Legend: T positions
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxlm.model.transformer import Model


def quick(f: Callable[..., Any]) -> Callable[..., Any]:
    """jax.jit that compiles in half the time: without LLVM's passes, but with all of XLA's."""
    return jax.jit(f, compiler_options={"xla_backend_optimization_level": 0})


def in_float64(tree: Any) -> Any:
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def random_params(model: Model, seed: int = 0) -> Any:
    """Parameters that are nowhere special: no unit scales, no zero sinks, logits of order one."""
    rng = np.random.default_rng(seed)

    def draw(path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        mean = 1.0 if path[-1].key == "scale" else 0.0
        return rng.normal(mean, 0.4, leaf.shape).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(model.init, jax.random.key(0)))


def packed_batch(documents: list[list[int]], T: int, vocab: int, seed: int = 0) -> dict[str, Any]:
    """Rows of documents of the given lengths, padded with random tokens of weight and id zero."""
    rng = np.random.default_rng(seed)
    shape = (len(documents), T)
    batch = {
        "tokens": rng.integers(vocab, size=shape, dtype=np.int32),
        "targets": rng.integers(vocab, size=shape, dtype=np.int32),
        "weights": rng.choice([0.0, 0.5, 1.0], size=shape).astype(np.float32),
        "segment_ids": np.zeros(shape, np.int32),
        "positions": np.zeros(shape, np.int32),
    }
    for row, lengths in enumerate(documents):
        ids = np.repeat(np.arange(1, len(lengths) + 1), lengths)
        batch["segment_ids"][row, : len(ids)] = ids
        batch["positions"][row, : len(ids)] = np.concatenate([[], *map(np.arange, lengths)])
        batch["weights"][row, len(ids) :] = 0.0
    return batch


def relative_error(actual: Any, expected: Any) -> float:
    """|actual - expected| / |expected|, Euclidean.  An expected zero must be met exactly."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    if actual.shape != expected.shape:
        raise ValueError(f"shapes {actual.shape} and {expected.shape} differ")
    error, norm = np.linalg.norm(actual - expected), np.linalg.norm(expected)
    return float(error / norm) if norm > 0 else (0.0 if error == 0 else np.inf)


def relative_errors(actual: Any, expected: Any) -> dict[str, float]:
    """relative_error of every array of two trees, by path; of stacked layers, the worst layer's."""
    expected = dict(jax.tree_util.tree_leaves_with_path(expected))
    errors = {}
    for path, a in jax.tree_util.tree_leaves_with_path(actual):
        name, e = jax.tree_util.keystr(path), expected.pop(path)
        pairs = zip(a, e, strict=True) if "layers" in name else [(a, e)]
        errors[name] = max(relative_error(*pair) for pair in pairs)
    if expected:
        raise ValueError(f"missing in actual: {list(expected)}")
    return errors
