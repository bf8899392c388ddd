# SPDX-License-Identifier: Apache-2.0
"""Attention over a sequence that is split over devices, balanced for the causal mask.

A causal mask gives the end of a sequence much to do and its beginning little.  So inside the
layers the sequence of n devices is cut into 2n chunks, and device i holds two of them:

    device        0       1      ...    n-1
    chunks     0, 2n-1  1, 2n-2  ...  n-1, n          ("zig-zag")

Two ways to bring queries and keys together, both called on one device's share (in shard_map):

ring         keys and values go round the ring of devices, one neighbour per turn (arXiv:2310.01889).
             At each turn but the first a device multiplies exactly two pairs of chunks: its late
             queries see the visitor's early keys, and of the visitor and itself the later one in
             the ring gives the other pair.  The backward pass sends keys, values and their
             gradients round once more; nothing of the other devices is kept in between.
all_gather   every device gets all keys and values; their gradients leave as reduce-scatter.

Ulysses (arXiv:2309.14509) needs none of this: it is attention split over heads in the place of
positions, which the table of rules says (sharding/rules.py) and the compiler turns into all-to-alls.

Legend: B batch  T positions of one device  S positions of a chunk  N query heads  K kv heads
        H head width
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.sharding.rules import num_parts, spec
from pallas_kernels.attention import api

AXIS = "context"


def is_split() -> bool:
    """Whether queries are split along the sequence, on the mesh that surrounds the trace."""
    return spec(("query_seq",))[0] == AXIS and num_parts(AXIS) > 1


def to_zigzag(*arrays_BT: jax.Array) -> tuple[jax.Array, ...]:
    """Arrays (rows, seq, ...) from the order of the text to that of the layers."""
    return tuple(_exchanged(_scatter, x_BT) for x_BT in arrays_BT) if is_split() else arrays_BT


def from_zigzag(x_BT: jax.Array) -> jax.Array:
    """The inverse of to_zigzag."""
    return _exchanged(_gather, x_BT) if is_split() else x_BT


def _exchanged(move: Any, x_BT: jax.Array) -> jax.Array:
    specs = spec(("rows", "seq", *[None] * (x_BT.ndim - 2)))
    return jax.shard_map(move, in_specs=specs, out_specs=specs, check_vma=False)(x_BT)


def _homes() -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """(owner in the order of the text, owner in zig-zag) of the even chunks, of the odd chunks."""
    n = num_parts(AXIS)
    home = [min(chunk, 2 * n - 1 - chunk) for chunk in range(2 * n)]
    return list(enumerate(home[0::2])), list(enumerate(home[1::2]))


def _scatter(x_BT: jax.Array) -> jax.Array:
    even, odd = (
        jax.lax.ppermute(chunk_BS, AXIS, moves)
        for chunk_BS, moves in zip(jnp.split(x_BT, 2, axis=1), _homes(), strict=True)
    )
    return _ordered(even, odd)


def _gather(x_BT: jax.Array) -> jax.Array:
    even, odd = (
        jax.lax.ppermute(chunk_BS, AXIS, [(home, owner) for owner, home in moves])
        for chunk_BS, moves in zip(
            jnp.split(_ordered(*jnp.split(x_BT, 2, 1)), 2, 1), _homes(), strict=True
        )
    )
    return jnp.concatenate([even, odd], axis=1)


def _ordered(a_BS: jax.Array, b_BS: jax.Array) -> jax.Array:
    """Device i's early chunk i and its late one 2n-1-i: one is even, one odd; swaps on odd i."""
    is_odd = jax.lax.axis_index(AXIS) % 2 == 1
    return jnp.concatenate([jnp.where(is_odd, b_BS, a_BS), jnp.where(is_odd, a_BS, b_BS)], axis=1)


class Options(NamedTuple):
    """The static part of a call; hashable."""

    window: int | None
    softcap: float | None
    impl: api.Impl
    chip: str | None


def all_gather(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    segment_ids_BT: jax.Array | None,
    sinks_N: jax.Array | None,
    logit_bound: jax.Array | None,
    options: Options,
) -> jax.Array:
    """One device's share (B, T, N, H) of causal attention, chunks in zig-zag order."""
    early, late = starts(q_BTNH.shape[1] // 2)
    ids_BT = segment_ids_BT
    k_BSKH, v_BSKH = _whole(k_BTKH), _whole(v_BTKH)
    k_ids_BS = None if ids_BT is None else _whole(ids_BT)
    outs = []
    for i, start in enumerate((early, late)):
        num_keys = k_BSKH.shape[1] if i else k_BSKH.shape[1] // 2  # early queries see no late keys
        ids = None
        if ids_BT is not None and k_ids_BS is not None:
            ids = jnp.split(ids_BT, 2, axis=1)[i], k_ids_BS[:, :num_keys]
        outs.append(
            api.attention(
                *(jnp.split(q_BTNH, 2, axis=1)[i], k_BSKH[:, :num_keys], v_BSKH[:, :num_keys]),
                segment_ids=ids,
                sinks_N=sinks_N,
                q_offset=start,
                logit_bound=logit_bound,
                **options._asdict(),
            )
        )
    return jnp.concatenate(outs, axis=1)


def _whole(x_BT: jax.Array) -> jax.Array:
    """The shares of all devices, in the order of the text."""
    early, late = (
        jax.lax.all_gather(x_BS, AXIS, axis=1) for x_BS in jnp.split(x_BT, 2, axis=1)
    )  # (B, devices, S, ...)
    both = jnp.concatenate([early, late[:, ::-1]], axis=1)
    return both.reshape(len(x_BT), -1, *x_BT.shape[2:])


def starts(S: int, turn: jax.Array | int = 0) -> tuple[jax.Array, jax.Array]:
    """Where the early and the late chunk begin that a device sees at a turn of the ring."""
    n = num_parts(AXIS)
    i = (jax.lax.axis_index(AXIS) - turn) % n
    return i * S, (2 * n - 1 - i) * S
