# SPDX-License-Identifier: Apache-2.0
"""Rows to the devices of their experts, and back: expert parallelism without a dropped token.

Each of P devices holds E / P experts, and rows of its own tokens, sorted by expert.

    device 0   | 0 0 1 | 2 3 3 3 |          device 0   | 0 0 . . 0 1 . | -> sorted | 0 0 0 1 ...
    device 1   | 0 1   | 2 2 3   |    ->    device 1   | 2 3 3 3 2 2 3 | -> sorted | 2 2 2 3 ...

What one device may get is bounded by all rows of all devices only, so that is the buffer's length;
rows beyond the last are not computed (grouped matmul).  It is what never dropping costs.

Legend: A rows of a device  Q = P A rows that a device may get  P devices  E experts of all devices
        G = E / P experts of one device  D width
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Route(NamedTuple):
    """How rows go out, and how they lie where they arrive.  Seen from one device."""

    sent_P: jax.Array  # rows to each device
    sent_start_P: jax.Array  # where they begin here
    sent_place_P: jax.Array  # where they begin there
    got_P: jax.Array  # rows from each device
    got_start_P: jax.Array  # where they begin here
    got_place_P: jax.Array  # where they began there
    order_Q: jax.Array  # rows as they arrive, by expert
    place_Q: jax.Array  # its inverse
    sizes_G: jax.Array  # rows of each expert of this device


def make_route(sizes_E: jax.Array, num_rows: int, axis: str) -> Route:
    """From the rows that this device has for every expert; called under shard_map over `axis`."""
    me, P = jax.lax.axis_index(axis), jax.lax.axis_size(axis)
    sizes_PPG = jax.lax.all_gather(sizes_E, axis).reshape(P, P, -1)  # from, to, expert there
    sizes_PP = jnp.sum(sizes_PPG, axis=2)
    sent_start_PP = _starts(sizes_PP, axis=1)  # by sender, where rows for each receiver begin
    got_start_PP = _starts(sizes_PP, axis=0)  # by receiver, where rows of each sender begin
    order_Q, place_Q = _sorting(sizes_PPG[:, me], P * num_rows)
    return Route(
        sent_P=sizes_PP[me],
        sent_start_P=sent_start_PP[me],
        sent_place_P=got_start_PP[me],
        got_P=sizes_PP[:, me],
        got_start_P=got_start_PP[:, me],
        got_place_P=sent_start_PP[:, me],
        order_Q=order_Q,
        place_Q=place_Q,
        sizes_G=jnp.sum(sizes_PPG[:, me], axis=0),
    )


def _starts(sizes: jax.Array, axis: int) -> jax.Array:
    return jnp.cumsum(sizes, axis=axis) - sizes


def _sorting(sizes_PG: jax.Array, num_rows: int) -> tuple[jax.Array, jax.Array]:
    """Rows by sender and expert, sorted by expert and sender: (order, its inverse).

    Without a sort: both are rows of whole chunks, counted from where the chunk begins.
    """
    chunk_PG = np.arange(sizes_PG.size).reshape(sizes_PG.shape)
    arrived, wanted = sizes_PG.reshape(-1), sizes_PG.T.reshape(-1)
    to_arrived, to_wanted = chunk_PG.T.reshape(-1), np.argsort(chunk_PG.T.reshape(-1))
    arrived_start, wanted_start = _starts(arrived, 0), _starts(wanted, 0)
    order_Q = _moved(wanted, wanted_start, arrived_start[to_arrived], num_rows)
    place_Q = _moved(arrived, arrived_start, wanted_start[to_wanted], num_rows)
    return order_Q, place_Q


def _moved(sizes: jax.Array, start: jax.Array, other: jax.Array, num_rows: int) -> jax.Array:
    """For rows of chunks that lie one after another from `start`, their places from `other` on."""
    row_Q = jnp.arange(num_rows, dtype=jnp.int32)
    chunk_Q = jnp.searchsorted(jnp.cumsum(sizes), row_Q, side="right")
    chunk_Q = jnp.minimum(chunk_Q, len(sizes) - 1)
    moved_Q = row_Q - start[chunk_Q] + other[chunk_Q]
    return jnp.where(row_Q < jnp.sum(sizes), moved_Q, row_Q).astype(jnp.int32)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def send(x_AD: jax.Array, route: Route, axis: str) -> jax.Array:
    """(Q, D): rows of all devices for the experts of this one, as they arrive; zeros beyond."""
    out = jnp.zeros((x_AD.shape[0] * jax.lax.axis_size(axis), x_AD.shape[1]), x_AD.dtype)
    forth = route.sent_start_P, route.sent_P, route.sent_place_P, route.got_P
    return _all_to_all(x_AD, out, *forth, axis)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def send_back(y_QD: jax.Array, route: Route, axis: str) -> jax.Array:
    """(A, D): every row where it came from; zeros where none went."""
    out = jnp.zeros((y_QD.shape[0] // jax.lax.axis_size(axis), y_QD.shape[1]), y_QD.dtype)
    back = route.got_start_P, route.got_P, route.got_place_P, route.sent_P
    return _all_to_all(y_QD, out, *back, axis)


# each is the other's transpose
send.defvjp(
    lambda x, route, axis: (send(x, route, axis), route),
    lambda axis, route, dy: (send_back(dy, route, axis), None),
)
send_back.defvjp(
    lambda y, route, axis: (send_back(y, route, axis), route),
    lambda axis, route, dx: (send(dx, route, axis), None),
)


def _all_to_all(
    x: jax.Array,
    out: jax.Array,
    start_P: jax.Array,
    size_P: jax.Array,
    place_P: jax.Array,
    got_P: jax.Array,
    axis: str,
) -> jax.Array:
    """Rows [start_p, start_p + size_p) of x to device p, there from row place_p of `out` on."""
    ragged = lambda *args: jax.lax.ragged_all_to_all(*args, axis_name=axis)
    gathered = lambda *args: by_all_gather(*args, axis_name=axis)
    args = x, out, start_P, size_P, place_P, got_P
    return jax.lax.platform_dependent(*args, cpu=gathered, default=ragged)


def by_all_gather(
    x: jax.Array,
    out: jax.Array,
    start_P: jax.Array,
    size_P: jax.Array,
    place_P: jax.Array,
    got_P: jax.Array,
    *,
    axis_name: str,
) -> jax.Array:
    """jax.lax.ragged_all_to_all where there is none: every device gets all, and takes its own."""
    del got_P  # it follows from the others
    me, P = jax.lax.axis_index(axis_name), jax.lax.axis_size(axis_name)
    mine = lambda own_P: jax.lax.all_gather(own_P, axis_name)[:, me]
    start_P, size_P, place_P = mine(start_P), mine(size_P), mine(place_P)
    all_rows = jax.lax.all_gather(x, axis_name, tiled=True)
    row = jnp.arange(len(out))
    for p in range(P):  # no two senders write one row
        from_row = p * len(x) + jnp.clip(start_P[p] + row - place_P[p], 0, len(x) - 1)
        is_sent = (row >= place_P[p]) & (row < place_P[p] + size_P[p])
        out = jnp.where(is_sent[:, None], all_rows[from_row], out)
    return out
