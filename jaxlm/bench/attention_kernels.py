# SPDX-License-Identifier: Apache-2.0
"""Our attention on TPU: what to compile, and how often each region then runs.

Legend: B batch  N query heads  K kv heads  T positions  H head width
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.bench.kernel_runs import Part, Runs, Work, nbytes
from pallas_kernels.attention import tpu_backward, tpu_forward
from pallas_kernels.attention.masks import Mask, block_ranges
from pallas_kernels.attention.specs import MODELS, Spec
from pallas_kernels.attention.tpu_backward_blocks import Blocks, default_blocks, fit
from pallas_kernels.tuning.attention import ForwardBlocks, forward_blocks

SHAPES = MODELS
BF16 = jnp.dtype(jnp.bfloat16)


def mask_of(s: Spec) -> Mask:
    return Mask(causal=s.causal, window=s.window)


def segment_ids(s: Spec) -> jax.Array | None:
    """Rows of documents, lognormal lengths of about 1,000 tokens."""
    if not s.has_ids:
        return None
    rng = np.random.default_rng(0)
    lengths = np.maximum(rng.lognormal(6.4, 1.0, (s.B, s.T // 16)), 16).astype(int)
    rows = [np.repeat(np.arange(len(row)), row)[: s.T] for row in lengths]
    return jnp.asarray(np.stack(rows), jnp.int32)


def inputs(s: Spec, is_backward: bool) -> tuple[jax.ShapeDtypeStruct, ...]:
    """q, k, v (and out, lse, d_out), and ids where the shape has them."""
    bf16 = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    q, kv = bf16(s.B, s.N, s.T, s.H), bf16(s.B, s.K, s.T, s.H)
    lse = jax.ShapeDtypeStruct((s.B, s.N, s.T), jnp.float32)
    tensors = (q, kv, kv, q, lse, q) if is_backward else (q, kv, kv)
    return (*tensors, jax.ShapeDtypeStruct((s.B, s.T), jnp.int32)) if s.has_ids else tensors


def forward_choice(s: Spec, chip: str) -> ForwardBlocks:
    return forward_blocks(chip, s.T, s.T, s.H, s.H, 2, not s.has_ids, s.window)


def forward(s: Spec, chip: str, paths: str, blocks: ForwardBlocks | None = None) -> Work:
    """Our forward kernel; paths: "online" for any input, "bounded" for bounded logits."""
    blocks = blocks or forward_choice(s, chip)
    ids = segment_ids(s)
    ranges = _heads(
        block_ranges(mask_of(s), ids, ids, 0, 0, s.T, s.T, blocks.queries, blocks.keys), s
    )
    heads, chunks = s.B * s.N, -(-s.T // blocks.chunk)
    programs = heads * (-(-s.T // blocks.queries))
    loops: Sequence[float] = (_full(ranges), _cut(ranges))
    products: Sequence[float] = ()
    if ids is None and tpu_forward._has_staircase(blocks, s.window, s.T):
        if s.window is None:
            loops, products = (_full(ranges),), (programs,)
        else:  # the first block of queries has a staircase of its own
            loops, products = (), (heads, programs - heads)

    def function(q: Any, k: Any, v: Any, *ids: Any) -> Any:
        return tpu_forward.forward(
            q, k, v, None, mask=mask_of(s), scale=s.H**-0.5, softcap=None, q_start=0, k_start=0,
            segment_ids=ids * 2 if ids else None, logit_bound=jnp.float32(1), chip=chip,
            interpret=False, paths=paths, blocks=blocks,
        )  # fmt: skip

    arguments = inputs(s, is_backward=False)
    q, kv = arguments[:2]
    lse = jax.ShapeDtypeStruct((s.B, s.N, s.T), jnp.float32)
    kv_bytes = 2 * nbytes(kv)
    if chunks > 1:
        kv_bytes = _chunk_fetches(ranges, blocks, chunks) * blocks.chunk * 2 * s.H * 2
    runs = Runs(programs * chunks, loops, products, programs, programs)
    part = Part("attention_forward", runs.of)
    return Work(function, arguments, (part,), nbytes(q, q, lse) + kv_bytes)


def _chunk_fetches(ranges: np.ndarray, blocks: ForwardBlocks, chunks: int) -> int:
    """How often a chunk of keys comes in: as in the kernel's index map, not if it is there."""
    tiles = blocks.chunk // blocks.keys
    low = ranges[..., 0] // tiles
    high = np.maximum(ranges[..., 3] - 1, ranges[..., 0]) // tiles
    index = np.clip(np.arange(chunks), low[..., None], high[..., None]).reshape(len(ranges), -1)
    return int(len(index) + (index[:, 1:] != index[:, :-1]).sum())


def backward_choice(s: Spec, chip: str) -> Blocks:
    return default_blocks(chip, BF16, not s.has_ids, s.window)


def backward(s: Spec, chip: str, blocks: Blocks | None = None) -> Work:
    """Our backward kernel: dq, dk and dv at once."""
    ids = segment_ids(s)
    blocks = blocks or backward_choice(s, chip)
    has_diagonal = ids is None
    if s.window is not None and s.window < max(blocks.block_kv, blocks.tile_q):
        has_diagonal = False
    sizes = fit(blocks, s.T, s.T, s.H, s.H, s.N // s.K, has_diagonal, BF16, BF16)
    ranges = _heads(
        block_ranges(
            *(mask_of(s), ids, ids, 0, 0, s.T, s.T, sizes.tile_q, sizes.block_kv), by_key=True
        ),
        s,
    )
    J, chunks = -(-s.T // sizes.block_kv), -(-s.T // sizes.chunk_q)
    heads = s.B * s.N
    fetched = chunks * J
    if has_diagonal:  # the square of tiles at the diagonal is a staircase of its own
        behind = (np.arange(J)[None, :] + 1) * (sizes.block_kv // sizes.tile_q)
        ranges = np.maximum(ranges, np.minimum(behind, ranges[..., 3])[..., None])
        per_chunk = sizes.chunk_q // sizes.block_kv
        fetched = sum(min(J, (c + 1) * per_chunk) for c in range(chunks))
    has_masked = not has_diagonal or s.window is not None
    loops = (_full(ranges), _cut(ranges)) if has_masked else (_full(ranges),)

    def function(q: Any, k: Any, v: Any, out: Any, lse: Any, d_out: Any, *ids: Any) -> Any:
        return tpu_backward.backward(
            q, k, v, out, lse, d_out, None, mask=mask_of(s), scale=s.H**-0.5, chip=chip,
            segment_ids=ids * 2 if ids else None, blocks=blocks,
        )  # fmt: skip

    arguments = inputs(s, is_backward=True)
    q, kv, _, _, lse = arguments[:5]
    kv_bytes = heads * fetched * sizes.block_kv * 2 * s.H * 2
    runs = Runs(
        heads * chunks * J, loops, (heads * J,) if has_diagonal else (), heads * J, heads * J
    )
    moved = (
        nbytes(q, q, lse, lse, q, kv, kv) + kv_bytes
    )  # in: q, d_out, lse, delta; out: dq, dk, dv
    return Work(function, arguments, (Part("attention_backward", runs.of),), moved)


def _heads(ranges: Any, s: Spec) -> np.ndarray:
    """(B * N, blocks, 4): every head visits what its row of the batch needs."""
    per_row = np.broadcast_to(np.asarray(ranges), (s.B, *ranges.shape[1:]))
    return np.repeat(per_row, s.N, axis=0)


def _full(ranges: np.ndarray) -> float:
    return float((ranges[..., 2] - ranges[..., 1]).sum())


def _cut(ranges: np.ndarray) -> float:
    return float((ranges[..., 1] - ranges[..., 0] + ranges[..., 3] - ranges[..., 2]).sum())
