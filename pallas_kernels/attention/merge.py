# SPDX-License-Identifier: Apache-2.0
"""One attention from several over disjoint sets of keys: what ring and all-gather attention need.

    lse = log sum_i exp(lse_i)          out = sum_i exp(lse_i - lse) out_i

Exact up to rounding, in any order, and differentiable.  Where a softmax has sinks, give them to one
of the parts and -inf to the others.

Legend: B batch  T query positions  N query heads  V width of v  P parts
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from pallas_kernels.attention.check import check_array, check_heads


def merge(outs: Sequence[jax.Array], lses: Sequence[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """outs (B, T, N, V) and lses (B, N, T) of every part -> (out, lse) of all keys together.

    Sums in f32; out in the dtype of the first.  Queries that no part shows a key get 0 and -inf.
    A lse that is NaN or +inf, which no finite scores give, makes lse NaN.
    Raises ValueError if there are no parts, not as many lses as outs, or shapes that do not agree.
    """
    outs, lses = list(outs), list(lses)
    if not outs or len(outs) != len(lses):
        raise ValueError(f"{len(outs)} outs and {len(lses)} lses; needs as many, and at least one")
    check_heads("outs[0]", outs[0])
    B, T, N, _ = outs[0].shape
    for i, (out, lse) in enumerate(zip(outs, lses, strict=True)):
        check_array(f"outs[{i}]", out, outs[0].shape)
        check_array(f"lses[{i}]", lse, (B, N, T))
    lse_PBNT = jnp.stack(lses)
    peak_BNT = jax.lax.stop_gradient(jnp.max(lse_PBNT, axis=0))
    peak_BNT = jnp.where(peak_BNT == -jnp.inf, 0.0, peak_BNT)
    weight_PBNT = jnp.exp(lse_PBNT - peak_BNT[None])
    total_BNT = jnp.sum(weight_PBNT, axis=0)
    is_seen_BNT = total_BNT != 0
    total_BNT = jnp.where(is_seen_BNT, total_BNT, 1.0)
    share_PBTN1 = jnp.swapaxes(weight_PBNT / total_BNT[None], 2, 3)[..., None]
    out_BTNV = sum(s * o.astype(jnp.float32) for s, o in zip(share_PBTN1, outs, strict=True))
    lse_BNT = jnp.where(is_seen_BNT, jnp.log(total_BNT) + peak_BNT, -jnp.inf)
    return jnp.asarray(out_BTNV).astype(outs[0].dtype), lse_BNT
