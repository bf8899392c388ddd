# SPDX-License-Identifier: Apache-2.0
"""Public attention on TPU: jax's flash and splash, tokamax's splash, and XLA without a kernel.

Legend: B batch  N query heads  K kv heads  G = N / K  T positions  H head width
"""

from importlib import import_module
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.bench.attention_kernels import inputs, mask_of
from jaxlm.bench.kernel_runs import Part, Runs, Work, nbytes
from pallas_kernels.attention import reference
from pallas_kernels.attention.masks import block_ranges
from pallas_kernels.attention.specs import Spec


class Pairs:
    """Pairs of blocks of queries and keys, over all heads."""

    def __init__(self, s: Spec, block_q: int, block_kv: int) -> None:
        ranges = np.asarray(
            block_ranges(mask_of(s), None, None, 0, 0, s.T, s.T, block_q, block_kv)
        )[0]
        heads = s.B * s.N
        per_row = ranges[:, 3] - ranges[:, 0]
        self.needed = heads * int(per_row.sum())  # by the static mask; documents hide nothing
        self.full = heads * int((ranges[:, 2] - ranges[:, 1]).sum())
        self.rows, self.columns = heads * (s.T // block_q), heads * (s.T // block_kv)
        self.all = self.rows * (s.T // block_kv)
        self.widest = self.rows * int(per_row.max())
        q = jax.ShapeDtypeStruct((s.B, s.N, s.T, s.H), jnp.bfloat16)
        self.q_bytes, self.row_bytes = nbytes(q), 4 * s.B * s.N * s.T
        self.kv_bytes = self.needed * block_kv * 2 * s.H * 2  # fetched for each pair
        self.q_bytes_by_pair = self.needed * block_q * s.H * 2
        self.dkv_bytes = 2 * q.size // s.N * s.K * 2


def flash(s: Spec, chip: str, block_q: int, block_kv: int) -> Work:
    """jax's flash_attention, forward; it takes one kv head per query head.

    Raises ValueError for a window, which it does not know.
    """
    if s.window is not None:
        raise ValueError("flash_attention has no window")
    from jax.experimental.pallas.ops.tpu import flash_attention as fa

    def function(q: Any, k: Any, v: Any, *ids: Any) -> Any:
        sizes = fa.BlockSizes(block_q=block_q, block_k_major=block_kv, block_k=block_kv, block_b=1)
        repeat = lambda x: jnp.repeat(x, s.N // s.K, axis=1)
        segments = fa.SegmentIds(*ids * 2) if ids else None
        return fa.flash_attention(
            q, repeat(k), repeat(v), segment_ids=segments, causal=True, sm_scale=s.H**-0.5,
            block_sizes=sizes,
        )  # fmt: skip

    pairs = Pairs(s, block_q, block_kv)
    runs = Runs(pairs.all, (), (pairs.needed,), pairs.rows, pairs.rows)
    part = Part("flash_attention", runs.of)
    moved = 2 * pairs.q_bytes + pairs.kv_bytes
    return Work(function, inputs(s, is_backward=False), (part,), moved)


def splash(
    s: Spec, chip: str, block_q: int, block_kv: int, compute: int, *, is_backward: bool
) -> Work:
    """jax's splash_attention; the backward pass as its one fused kernel, without the sum of dq."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as sk
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as sm

    if is_backward:  # the forward pass comes along and is not read
        sizes = sk.BlockSizes(
            block_q=512, block_kv=512, block_kv_compute=512, block_q_dkv=block_q,
            block_kv_dkv=block_kv, block_kv_dkv_compute=compute, use_fused_bwd_kernel=True,
        )  # fmt: skip
    else:
        sizes = sk.BlockSizes(block_q=block_q, block_kv=block_kv, block_kv_compute=compute)
    G = s.N // s.K
    make = sk.make_splash_mha if G == 1 else sk.make_splash_mqa
    heads = sm.MultiHeadMask([_mask(sm, s)] * (s.N if G == 1 else G))
    kernel = make(mask=heads, head_shards=1, q_seq_shards=1, block_sizes=sizes)
    attend = lambda q, k, v, *ids: kernel(q, k, v, sk.SegmentIds(*ids * 2) if ids else None)

    pairs = Pairs(s, block_q, block_kv)
    if is_backward:
        runs = Runs(pairs.all, (), (pairs.needed,), pairs.columns, pairs.columns)
        name = "dkv_segmented_no_residuals" if s.has_ids else "dkv_no_residuals"
    else:  # a row of the grid is as long as the longest that the mask needs
        runs = Runs(pairs.widest, (), (pairs.needed,), pairs.rows, pairs.rows)
        name = f"splash_m{'h' if G == 1 else 'q'}a"
    part = Part(name, runs.of)
    function = _differentiated(_batched(attend, s, G > 1), s, is_backward)
    return Work(function, inputs(s, is_backward), (part,), _moved(pairs, s, block_kv, is_backward))


def tokamax_splash(
    s: Spec, chip: str, block_q: int, block_kv: int, compute: int, *, is_backward: bool
) -> Work:
    """tokamax's splash attention: only the blocks that a static mask needs are in its grid."""
    package = "tokamax._src.ops.experimental.tpu.splash_attention"
    sk, sm = (import_module(f"{package}.splash_attention_{part}") for part in ("kernel", "mask"))
    blocks = {"block_q": block_q, "block_kv": block_kv, "block_kv_compute": compute}
    if is_backward:
        blocks = dict.fromkeys(blocks, 512) | {
            "block_q_dkv": block_q, "block_kv_dkv": block_kv, "block_kv_dkv_compute": compute,
        }  # fmt: skip
    kernel = sk.make_splash_mha(mask=_mask(sm, s), config=sk.SplashConfig(**blocks), q_seq_shards=1)
    attend = lambda q, k, v, *ids: kernel(q, k, v, sk.SegmentIds(*ids * 2) if ids else None)
    pairs = Pairs(s, block_q, block_kv)
    products = (pairs.full, pairs.needed - pairs.full)
    if is_backward:
        runs = Runs(pairs.all, (), products, pairs.columns, pairs.columns)
    else:
        runs = Runs(pairs.needed, (), products, pairs.rows, pairs.rows)
    part = Part("splash_mha_dkv" if is_backward else "splash_mha_fwd", runs.of)
    function = _differentiated(_batched(attend, s, False), s, is_backward)
    return Work(function, inputs(s, is_backward), (part,), _moved(pairs, s, block_kv, is_backward))


def plain_xla(s: Spec, chip: str, *, is_backward: bool) -> Work:
    """The definition in jnp by XLA, which keeps every score."""

    def attend(q: Any, k: Any, v: Any, *ids: Any) -> Any:
        swap = lambda x: jnp.swapaxes(x, 1, 2)
        out = reference.attention(
            swap(q), swap(k), swap(v), causal=True, window=s.window, scale=s.H**-0.5,
            segment_ids=ids * 2 if ids else None,
        )  # fmt: skip
        return swap(out)

    scores = 4 * s.B * s.N * s.T * s.T
    return Work(
        _differentiated(attend, s, is_backward, scale=1.0),
        inputs(s, is_backward),
        whole=("f32 scores", scores),
    )


def _mask(sm: Any, s: Spec) -> Any:
    square = (s.T, s.T)
    return sm.CausalMask(square) if s.window is None else sm.LocalMask(square, (s.window - 1, 0), 0)


def _batched(attend: Any, s: Spec, by_group: bool) -> Any:
    """Over the rows of the batch, and over kv heads where a kernel takes one."""

    def one(q: Any, k: Any, v: Any, *ids: Any) -> Any:
        if not by_group:
            return attend(q, k, v, *ids)
        of_group = lambda q, k, v: attend(q, k, v, *ids)
        return jax.vmap(of_group)(q.reshape(s.K, s.N // s.K, s.T, s.H), k, v).reshape(q.shape)

    return jax.vmap(one)


def _differentiated(call: Any, s: Spec, is_backward: bool, scale: float | None = None) -> Any:
    scale = s.H**-0.5 if scale is None else scale

    def function(q: Any, k: Any, v: Any, *rest: Any) -> Any:
        ids = rest[len(rest) - s.has_ids :]
        attend = lambda q, k, v: call(q, k, v, *ids)
        scaled = q if scale == 1.0 else q * q.dtype.type(scale)
        if not is_backward:
            return attend(scaled, k, v)
        _, pull = jax.vjp(attend, scaled, k, v)
        return pull(rest[2])

    return function


def _moved(pairs: Pairs, s: Spec, block_kv: int, is_backward: bool) -> int:
    """Bytes of the blocks; the fused backward pass writes dq once per block of keys."""
    if not is_backward:
        return 2 * pairs.q_bytes + pairs.kv_bytes
    partial_dq = pairs.q_bytes * (s.T // block_kv)
    q_side = 2 * pairs.q_bytes_by_pair
    return q_side + partial_dq + 2 * pairs.row_bytes + 2 * pairs.dkv_bytes * s.N // s.K
