# SPDX-License-Identifier: Apache-2.0
"""Ring attention, forward and backward, on one device's share: see nn/context.py.

    turn 0      own keys:      early x early,  late x early,  late x late
    turn t      of device j = i - t:  late x early, and  early x early if j < i else late x late

Legend: B batch  T positions of one device  N query heads  K kv heads  H head width
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.nn.context import AXIS, Options, starts
from jaxlm.sharding.rules import num_parts
from pallas_kernels.attention import api, parts
from pallas_kernels.attention.merge import merge


class Keys(NamedTuple):
    """What travels: a device's keys, or one of its two chunks of them."""

    k: jax.Array
    v: jax.Array
    ids: Any  # None: one segment


class Queries(NamedTuple):
    """A chunk of queries, and in the backward pass what is known of it."""

    q: jax.Array
    ids: Any
    out: Any = None
    lse: Any = None
    d_out: Any = None


def ring(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    segment_ids_BT: jax.Array | None,
    sinks_N: jax.Array | None,
    logit_bound: jax.Array | None,
    options: Options,
) -> jax.Array:
    """One device's share (B, T, N, H) of causal attention, chunks in zig-zag order."""
    return _ring(options, q_BTNH, k_BTKH, v_BTKH, sinks_N, segment_ids_BT, logit_bound)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _ring(options, q_BTNH, k_BTKH, v_BTKH, sinks_N, ids_BT, bound):  # type: ignore[no-untyped-def]
    return _ring_fwd(options, q_BTNH, k_BTKH, v_BTKH, sinks_N, ids_BT, bound)[0]


def _ring_fwd(options, q_BTNH, k_BTKH, v_BTKH, sinks_N, ids_BT, bound):  # type: ignore[no-untyped-def]
    early, late = _halves(Queries(q_BTNH, ids_BT))
    starts_of = partial(starts, q_BTNH.shape[1] // 2)

    def attend(queries: Queries, keys: Keys, q_start, k_start, sinks_N=None):  # type: ignore[no-untyped-def]
        out, lse = api.attention(
            *(queries.q, keys.k, keys.v),
            segment_ids=None if keys.ids is None else (queries.ids, keys.ids),
            sinks_N=sinks_N,
            q_offset=q_start,
            k_offset=k_start,
            logit_bound=bound,
            return_lse=True,
            **options._asdict(),
        )
        return out.astype(jnp.float32), lse

    def turn(t, visitor, found):  # type: ignore[no-untyped-def]
        is_before, (my_early, my_late), theirs = _places(t, starts_of)
        k_early, k_late = _halves(visitor)
        always = attend(late, k_early, my_late, theirs[0])
        queries, keys = _where(is_before, (early, k_early), (late, k_late))
        out, lse = attend(
            queries, keys, *_where(is_before, (my_early, theirs[0]), (my_late, theirs[1]))
        )
        in_early = out, jnp.where(is_before, lse, -jnp.inf)
        in_late = out, jnp.where(is_before, -jnp.inf, lse)
        return _merged(found[0], in_early), _merged(found[1], always, in_late)

    own = Keys(k_BTKH, v_BTKH, ids_BT)
    k_early, k_late = _halves(own)
    my_early, my_late = starts_of(0)
    visitor = _rotated(own)
    found = (
        attend(early, k_early, my_early, my_early, sinks_N),
        _merged(
            attend(late, k_late, my_late, my_late, sinks_N),
            attend(late, k_early, my_late, my_early),
        ),
    )

    def step(t, carry):  # type: ignore[no-untyped-def]
        visitor, found = carry
        return _rotated(visitor), turn(t, visitor, found)  # the next comes while this one is used

    n = num_parts(AXIS)
    visitor, found = jax.lax.fori_loop(1, n - 1, step, (visitor, found))
    (out_e, lse_e), (out_l, lse_l) = turn(n - 1, visitor, found)
    out_BTNH = jnp.concatenate([out_e, out_l], axis=1).astype(q_BTNH.dtype)
    lse_BNT = jnp.concatenate([lse_e, lse_l], axis=2)
    return out_BTNH, (q_BTNH, k_BTKH, v_BTKH, sinks_N, ids_BT, out_BTNH, lse_BNT)


def _ring_bwd(options, residuals, d_out_BTNH):  # type: ignore[no-untyped-def]
    q_BTNH, k_BTKH, v_BTKH, sinks_N, ids_BT, out_BTNH, lse_BNT = residuals
    early, late = _halves(Queries(q_BTNH, ids_BT, out_BTNH, lse_BNT, d_out_BTNH))
    starts_of = partial(starts, q_BTNH.shape[1] // 2)
    f32 = partial(jax.tree.map, lambda x: x.astype(jnp.float32))

    def gradients(queries: Queries, keys: Keys, q_start, k_start):  # type: ignore[no-untyped-def]
        dq, *dkv = parts.gradients(
            *(queries.q, keys.k, keys.v, queries.out, queries.lse, queries.d_out),
            segment_ids=None if keys.ids is None else (queries.ids, keys.ids),
            q_offset=q_start,
            k_offset=k_start,
            **options._asdict(),
        )
        return f32(dq), f32(dkv)

    def turn(t, visitor, dq, dkv):  # type: ignore[no-untyped-def]
        is_before, (my_early, my_late), theirs = _places(t, starts_of)
        k_early, k_late = _halves(visitor)
        dq_always, dkv_always = gradients(late, k_early, my_late, theirs[0])
        queries, keys = _where(is_before, (early, k_early), (late, k_late))
        dq_part, dkv_part = gradients(
            queries, keys, *_where(is_before, (my_early, theirs[0]), (my_late, theirs[1]))
        )
        dq_early, dq_late = _either(is_before, dq_part)
        dkv_early, dkv_late = _either(is_before, dkv_part)
        dkv = _sum(dkv, (_sum(dkv_early, dkv_always), dkv_late))
        return _sum(dq, (dq_early, _sum(dq_late, dq_always))), dkv

    own = Keys(k_BTKH, v_BTKH, ids_BT)
    k_early, k_late = _halves(own)
    my_early, my_late = starts_of(0)
    visitor = _rotated(own)
    dq_e, dkv_e = gradients(early, k_early, my_early, my_early)
    dq_l, dkv_l = gradients(late, k_late, my_late, my_late)
    dq_x, dkv_x = gradients(late, k_early, my_late, my_early)
    dq, dkv = (dq_e, dq_l + dq_x), (_sum(dkv_e, dkv_x), dkv_l)

    def step(t, carry):  # type: ignore[no-untyped-def]
        visitor, dq, dkv = carry
        return _rotated(visitor), *turn(t, visitor, dq, _rotated(dkv))

    n = num_parts(AXIS)
    visitor, dq, dkv = jax.lax.fori_loop(1, n - 1, step, (visitor, dq, dkv))
    dq, dkv = turn(n - 1, visitor, dq, _rotated(dkv))
    (dk_e, dv_e), (dk_l, dv_l) = _rotated(dkv)  # home
    join = lambda pair, like: jnp.concatenate(pair, axis=1).astype(like.dtype)
    d_sinks_N = None
    if sinks_N is not None:
        delta_BTN = jnp.einsum("BTNH,BTNH->BTN", f32(out_BTNH), f32(d_out_BTNH))
        p_BTN = jnp.exp(sinks_N[None, None, :] - lse_BNT.swapaxes(1, 2))
        d_sinks_N = -jnp.sum(p_BTN * delta_BTN, axis=(0, 1)).astype(sinks_N.dtype)
    return (
        join(dq, q_BTNH),
        join((dk_e, dk_l), k_BTKH),
        join((dv_e, dv_l), v_BTKH),
        d_sinks_N,
        None,
        None,
    )


_ring.defvjp(_ring_fwd, _ring_bwd)


def _halves(x: Any) -> tuple[Any, Any]:
    """Early and late chunk of every array of a tuple; only an lse has positions last."""
    axis = lambda a: 2 if a.ndim == 3 else 1
    half = lambda i: jax.tree.map(lambda a: jnp.split(a, 2, axis=axis(a))[i], x)
    return half(0), half(1)


def _places(t: Any, starts_of: Any) -> tuple[jax.Array, Any, Any]:
    """Whether the visitor of turn t comes before this device, and where the chunks of both start."""
    i, n = jax.lax.axis_index(AXIS), num_parts(AXIS)
    j = (i - t) % n
    return j < i, starts_of(0), starts_of(t)


def _rotated(x: Any) -> Any:
    n = num_parts(AXIS)
    return jax.lax.ppermute(x, AXIS, [(i, (i + 1) % n) for i in range(n)])


def _where(condition: jax.Array, a: Any, b: Any) -> Any:
    return jax.tree.map(partial(jnp.where, condition), a, b)


def _either(condition: jax.Array, x: Any) -> tuple[Any, Any]:
    """x in the first or in the second place, zeros in the other."""
    zeros = jax.tree.map(jnp.zeros_like, x)
    return _where(condition, x, zeros), _where(condition, zeros, x)


def _sum(a: Any, b: Any) -> Any:
    return jax.tree.map(jnp.add, a, b)


def _merged(*found: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    outs, lses = zip(*found, strict=True)
    return merge(outs, lses)
