# SPDX-License-Identifier: Apache-2.0
"""Multi-head attention with grouped keys and values: projections, RoPE, cache, softmax, output.

Legend: B batch  T query positions  S key positions  D model width  N query heads  K kv heads
        H head width  G query heads of one kv head
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxlm.nn import init, kernels
from jaxlm.nn.linear import linear
from jaxlm.nn.norm import RMSNorm
from jaxlm.nn.rope import apply_rope
from jaxlm.sharding.rules import constrain
from pallas_kernels.attention.api import Impl, attention


class KVCache(NamedTuple):
    """Keys and values of the positions so far; slot s holds position s."""

    k_BSKH: jax.Array
    v_BSKH: jax.Array


class Where(NamedTuple):
    """What attention needs to know of each position, the same for every layer."""

    rope: tuple[jax.Array, jax.Array]  # tables of nn/rope.py
    segment_ids_BT: jax.Array | None  # packed rows
    offset_B: Any  # int32 (B,): position of the first query, when a cache is given


class Attention(nn.Module):
    """(B, T, D) -> (B, T, D).  Numerics: scores and softmax in f32, products in x's dtype."""

    num_heads: int
    kv_heads: int
    head_dim: int
    num_layers: int  # of the whole model, for the initial scale
    window: int | None
    softcap: float | None
    has_sinks: bool
    qk_norm_eps: float | None  # None: queries and keys are not normalised
    impl: Impl

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, where: Where, cache: KVCache | None
    ) -> tuple[jax.Array, KVCache | None]:
        D, N, K, H = x_BTD.shape[-1], self.num_heads, self.kv_heads, self.head_dim
        q_axes, kv_axes = ("embed", "heads", "head_dim"), ("embed", "kv_heads", "head_dim")
        wq_DNH = init.param(self, "wq", init.reads(D), (D, N, H), q_axes)
        wk_DKH = init.param(self, "wk", init.reads(D), (D, K, H), kv_axes)
        wv_DKH = init.param(self, "wv", init.reads(D), (D, K, H), kv_axes)
        wo_NHD = init.param(
            self,
            "wo",
            init.writes(N * H, self.num_layers),
            (N, H, D),
            ("heads", "head_dim", "embed"),
        )
        sinks_N = (
            init.param(self, "sinks", init.zeros, (N,), ("heads",)) if self.has_sinks else None
        )

        q_BTNH, k_BTKH, v_BTKH = (linear(x_BTD, w) for w in (wq_DNH, wk_DKH, wv_DKH))
        logit_bound = None
        if self.qk_norm_eps is not None:
            q_norm = RMSNorm(self.qk_norm_eps, axis="head_dim", name="q_norm")
            k_norm = RMSNorm(self.qk_norm_eps, axis="head_dim", name="k_norm")
            # the gradient of the norm needs its input, that of all else the kernel's
            q_BTNH, k_BTKH = (checkpoint_name(x, "attention_qkv") for x in (q_BTNH, k_BTKH))
            q_BTNH, k_BTKH = q_norm(q_BTNH), k_norm(k_BTKH)
            logit_bound = _logit_bound(q_norm, k_norm, where.rope)
        q_BTNH, k_BTKH = apply_rope(q_BTNH, where.rope), apply_rope(k_BTKH, where.rope)
        q_BTNH = constrain(q_BTNH, ("batch", "seq", "heads", "head_dim"))

        if self.is_mutable_collection("probes") and not self.is_initializing():
            largest = _largest_logit(q_BTNH, k_BTKH, where.segment_ids_BT)
            self.sow("probes", "logit_max", largest)

        mask: dict[str, Any] = dict(window=self.window, softcap=self.softcap, sinks_N=sinks_N)
        if cache is None:
            ids_BT = where.segment_ids_BT
            out_BTNH = kernels.attention(
                *(q_BTNH, k_BTKH, v_BTKH),
                segment_ids_BT=ids_BT,
                logit_bound=logit_bound,
                impl=self.impl,
                **mask,
            )
        else:
            cache = KVCache(*map(_write_at(where.offset_B), cache, (k_BTKH, v_BTKH)))
            offset_B = where.offset_B  # few queries: no kernel
            out_BTNH = attention(q_BTNH, *cache, q_offset=offset_B, impl="reference", **mask)
        return linear(out_BTNH, wo_NHD, num_inputs=2), cache


def _logit_bound(q_norm: RMSNorm, k_norm: RMSNorm, rope: tuple[jax.Array, jax.Array]) -> jax.Array:
    """More than |q k| / sqrt(H) can be for normalised queries and keys: an f32 scalar.

    A vector of mean square 1 has norm sqrt(H), a learned scale stretches it by its largest entry
    at most, and RoPE by its gain (cos^2 + sin^2 of any angle is the square).  Queries and keys are
    rounded twice each, after the norm and after RoPE: (1 + 2^-8)^4 < 1.016 in bf16.
    """
    longest = lambda norm: jnp.max(jnp.abs(nn.unbox(norm.variables["params"]["scale"])))
    H = 2 * rope[0].shape[-1]
    gain_squared = sum(jnp.square(table[0, 0, 0, 0]) for table in rope)
    bound = 1.02 * math.sqrt(H) * longest(q_norm) * longest(k_norm) * gain_squared
    return jax.lax.stop_gradient(bound)


def _largest_logit(
    q_BTNH: jax.Array, k_BSKH: jax.Array, segment_ids_BT: jax.Array | None
) -> jax.Array:
    """The largest |q k| / sqrt(H) that at most 64 queries of each row see: an f32 scalar."""
    B, T, N, H = q_BTNH.shape
    K = k_BSKH.shape[2]
    at = jnp.arange(0, T, max(1, T // 64))
    q_BTKGH = q_BTNH[:, at].reshape(B, len(at), K, N // K, H)
    product = partial(jnp.einsum, preferred_element_type=jnp.float32)
    logits_BKGTS = product("BTKGH,BSKH->BKGTS", q_BTKGH, k_BSKH)
    sees_BTS = jnp.broadcast_to(at[None, :, None] >= jnp.arange(T)[None, None], (B, len(at), T))
    if segment_ids_BT is not None:
        sees_BTS &= segment_ids_BT[:, at, None] == segment_ids_BT[:, None, :]
    seen_BKGTS = jnp.where(sees_BTS[:, None, None], jnp.abs(logits_BKGTS), 0)
    return jnp.max(seen_BKGTS) / math.sqrt(H)


def _write_at(offset_B: jax.Array) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Writes new rows (B, T, ...) into slots (B, S, ...) from each batch element's offset on."""
    write_row = lambda slots, new, at: jax.lax.dynamic_update_slice_in_dim(slots, new, at, axis=0)
    return lambda slots, new: jax.vmap(write_row)(slots, new.astype(slots.dtype), offset_B)
