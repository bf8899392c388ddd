# SPDX-License-Identifier: Apache-2.0
"""Attention on TPU, ours and jax's own: what to compile, and how often each region then runs.

Legend: B batch  N query heads  K kv heads  T positions  H head width
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.bench.schedule import Region, Schedule
from pallas_kernels.attention import tpu_backward, tpu_forward
from pallas_kernels.attention.masks import Mask, key_block_ranges, query_block_ranges
from pallas_kernels.attention.specs import MODELS, Spec
from pallas_kernels.attention.tpu_backward_blocks import default_blocks, fit
from pallas_kernels.tuning.attention import forward_blocks

SHAPES = MODELS


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


class Runs(NamedTuple):
    """How often the regions of a kernel run, over all cores, in the order of the program."""

    steps: float  # of the grid
    loops: Sequence[float]  # turns of each loop inside of a step
    products: Sequence[float]  # of each conditional region that holds matrix products
    ends: float  # of other regions two conditions deep: a row's first or last step

    def of(self, schedule: Schedule, cores: int) -> Callable[[Region], float]:
        """Runs of a region on one core; the last number stands for all that follow it."""
        inner = schedule.inner_loops
        guarded = [r for r in schedule.regions if _is_guarded_product(r)]
        nth = lambda numbers, i: numbers[min(i, len(numbers) - 1)]

        def runs(region: Region) -> float:
            if not region.loops:
                return 1.0
            if len(region.loops) > 1:
                return nth(self.loops, inner.index(region.loops[-1])) / cores
            if _is_guarded_product(region):
                return nth(self.products, guarded.index(region)) / cores
            return (self.ends if region.num_branches > 1 else self.steps) / cores

        return runs


def _is_guarded_product(region: Region) -> bool:
    return bool(len(region.loops) == 1 and region.num_branches and region.units.get("MXU", 0))


class Work(NamedTuple):
    """A function to compile, and the kernels in it to be read."""

    function: Callable[..., Any]
    arguments: tuple[jax.ShapeDtypeStruct, ...]
    kernels: tuple[tuple[str, Runs], ...]  # (part of the kernel's name, its runs)
    hbm_bytes: int  # each tensor once


def _tensors(s: Spec, is_backward: bool) -> tuple[tuple[jax.ShapeDtypeStruct, ...], int]:
    """q, k, v (and out, lse, d_out), and the bytes that have to move."""
    bf16 = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    q, kv = bf16(s.B, s.N, s.T, s.H), bf16(s.B, s.K, s.T, s.H)
    lse = jax.ShapeDtypeStruct((s.B, s.N, s.T), jnp.float32)
    num_bytes = lambda *xs: sum(x.size * x.dtype.itemsize for x in xs)
    if is_backward:  # in: q, k, v, d_out, lse, delta; out: dq, dk, dv
        return (q, kv, kv, q, lse, q), num_bytes(q, kv, kv, q, lse, lse, q, kv, kv)
    return (q, kv, kv), num_bytes(q, kv, kv, q, lse)


def forward(s: Spec, chip: str, paths: str) -> Work:
    """Our forward kernel; paths: "online" for any input, "bounded" for bounded logits."""
    ids = segment_ids(s)
    is_plain = ids is None
    blocks = forward_blocks(chip, s.T, s.T, s.H, s.H, 2, is_plain, s.window)
    ranges = _heads(
        query_block_ranges(mask_of(s), ids, ids, 0, 0, s.T, s.T, blocks.queries, blocks.keys), s
    )
    programs = s.B * s.N * (-(-s.T // blocks.queries))
    steps = programs * (-(-s.T // blocks.chunk))
    full, cut = _full(ranges), _cut(ranges)
    tensors, hbm_bytes = _tensors(s, is_backward=False)
    loops = (full,) if is_plain else (full, cut)
    # with a window the first block of queries has a staircase of its own
    products = (programs,) if s.window is None else (s.B * s.N, programs - s.B * s.N)

    def function(q: Any, k: Any, v: Any, *ids: Any) -> Any:
        return tpu_forward.forward(
            q, k, v, None, mask=mask_of(s), scale=s.H**-0.5, softcap=None, q_start=0, k_start=0,
            segment_ids=ids * 2 if ids else None, logit_bound=jnp.float32(1), chip=chip,
            interpret=False, paths=paths,
        )  # fmt: skip

    runs = Runs(steps, loops, products, programs)
    return Work(function, (*tensors, *_ids(s)), (("attention_forward", runs),), hbm_bytes)


def backward(s: Spec, chip: str) -> Work:
    """Our backward kernel: dq, dk and dv at once."""
    ids = segment_ids(s)
    has_diagonal = ids is None
    blocks = default_blocks(chip, jnp.dtype(jnp.bfloat16), has_diagonal, s.window)
    has_diagonal &= s.window is None or s.window >= blocks.block_kv
    sizes = fit(
        blocks, s.T, s.T, s.H, s.H, s.N // s.K, has_diagonal, jnp.dtype(jnp.bfloat16),
        jnp.dtype(jnp.bfloat16),
    )  # fmt: skip
    ranges = _heads(
        key_block_ranges(mask_of(s), ids, ids, 0, 0, s.T, s.T, sizes.tile_q, sizes.block_kv), s
    )
    J, chunks = -(-s.T // sizes.block_kv), -(-s.T // sizes.chunk_q)
    if has_diagonal:  # the square of tiles at the diagonal is a staircase of its own
        behind = (np.arange(J)[None, :] + 1) * (sizes.block_kv // sizes.tile_q)
        ranges = np.maximum(ranges, np.minimum(behind, ranges[..., 3])[..., None])
    full, cut = _full(ranges), _cut(ranges)
    heads = s.B * s.N
    loops = (full,) if has_diagonal and s.window is None else (full, cut)
    tensors, hbm_bytes = _tensors(s, is_backward=True)

    def function(q: Any, k: Any, v: Any, out: Any, lse: Any, d_out: Any, *ids: Any) -> Any:
        return tpu_backward.backward(
            q, k, v, out, lse, d_out, None, mask=mask_of(s), scale=s.H**-0.5, chip=chip,
            segment_ids=ids * 2 if ids else None,
        )  # fmt: skip

    runs = Runs(heads * chunks * J, loops, [heads * J], heads * J)
    return Work(function, (*tensors, *_ids(s)), (("attention_backward", runs),), hbm_bytes)


def flash(s: Spec, chip: str, block: int) -> Work:
    """jax's flash_attention, forward; it takes one kv head per query head.

    Raises ValueError for a window, which it does not know.
    """
    if s.window is not None:
        raise ValueError("flash_attention has no window")
    from jax.experimental.pallas.ops.tpu import flash_attention as fa

    def function(q: Any, k: Any, v: Any, *ids: Any) -> Any:
        sizes = fa.BlockSizes(block_q=block, block_k_major=block, block_k=block, block_b=1)
        repeat = lambda x: jnp.repeat(x, s.N // s.K, axis=1)
        segments = fa.SegmentIds(*ids * 2) if ids else None
        return fa.flash_attention(
            q, repeat(k), repeat(v), segment_ids=segments, causal=True, sm_scale=s.H**-0.5,
            block_sizes=sizes,
        )  # fmt: skip

    tensors, hbm_bytes = _tensors(s, is_backward=False)
    runs = _public_runs(s, block, block)
    return Work(function, (*tensors, *_ids(s)), (("flash_attention", runs),), hbm_bytes)


def splash(s: Spec, chip: str, block: int, compute: int, is_backward: bool) -> Work:
    """jax's splash_attention; the backward pass as its one fused kernel, without the sum of dq."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as sk
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as sm

    if is_backward:  # the forward pass comes along and is not read
        sizes = sk.BlockSizes(
            block_q=512, block_kv=512, block_kv_compute=512, block_q_dkv=block,
            block_kv_dkv=block, block_kv_dkv_compute=compute, use_fused_bwd_kernel=True,
        )  # fmt: skip
    else:
        sizes = sk.BlockSizes(block_q=block, block_kv=block, block_kv_compute=compute)
    square = (s.T, s.T)
    mask = sm.CausalMask(square) if s.window is None else sm.LocalMask(square, (s.window - 1, 0), 0)
    G = s.N // s.K
    make = sk.make_splash_mha if G == 1 else sk.make_splash_mqa
    heads = sm.MultiHeadMask([mask] * (s.N if G == 1 else G))
    kernel = partial(make, mask=heads, head_shards=1, q_seq_shards=1, block_sizes=sizes)()

    def attend(q: Any, k: Any, v: Any, *ids: Any) -> Any:
        segments = sk.SegmentIds(*ids * 2) if ids else None
        if G == 1:
            return kernel(q, k, v, segments)
        of_group = lambda q, k, v: kernel(q, k, v, segments)
        return jax.vmap(of_group)(q.reshape(s.K, G, s.T, s.H), k, v).reshape(q.shape)

    def function(q: Any, k: Any, v: Any, *rest: Any) -> Any:
        ids, scaled = rest[len(rest) - s.has_ids :], q * q.dtype.type(s.H**-0.5)
        call = lambda q, k, v: jax.vmap(attend)(q, k, v, *ids)
        if not is_backward:
            return call(scaled, k, v)
        out, pull = jax.vjp(call, scaled, k, v)
        return pull(out)

    tensors, hbm_bytes = _tensors(s, is_backward)
    name = "dkv_no_residuals" if is_backward else f"splash_m{'h' if G == 1 else 'q'}a"
    return Work(function, (*tensors, *_ids(s)), ((name, _public_runs(s, block, block)),), hbm_bytes)


def _public_runs(s: Spec, block_q: int, block_kv: int) -> Runs:
    """A grid of all pairs of blocks; those that a static mask hides pass by, documents do not."""
    ranges = np.asarray(
        query_block_ranges(mask_of(s), None, None, 0, 0, s.T, s.T, block_q, block_kv)
    )
    pairs = int((ranges[..., 3] - ranges[..., 0]).sum())
    rows, steps = s.T // block_q, (s.T // block_q) * (s.T // block_kv)
    heads = s.B * s.N
    return Runs(heads * steps, [heads * pairs], [heads * pairs], heads * rows)


def _ids(s: Spec) -> Iterator[jax.ShapeDtypeStruct]:
    if s.has_ids:
        yield jax.ShapeDtypeStruct((s.B, s.T), jnp.int32)


def _heads(ranges: Any, s: Spec) -> np.ndarray:
    """(B * N, blocks, 4): every head visits what its row of the batch needs."""
    per_row = np.broadcast_to(np.asarray(ranges), (s.B, *ranges.shape[1:]))
    return np.repeat(per_row, s.N, axis=0)


def _full(ranges: np.ndarray) -> float:
    return float((ranges[..., 2] - ranges[..., 1]).sum())


def _cut(ranges: np.ndarray) -> float:
    return float((ranges[..., 1] - ranges[..., 0] + ranges[..., 3] - ranges[..., 2]).sum())
