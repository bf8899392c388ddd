# SPDX-License-Identifier: Apache-2.0
"""The program that computes one block of queries of one head: see tpu_forward.py for the mathematics.

Legend: T query positions  H width of q and k  V width of v  Q queries of a block  J keys of a tile
        C keys of a chunk  L the 128 lanes of a vector register
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.attention.masks import Mask, tile_mask
from pallas_kernels.tuning.attention import ForwardBlocks

LANES = 128
LOG2_E = 1.4426950408889634
BOUNDED = 96.0  # 2^-96 .. 2^96 leave 2^30 for the sums and the values before f32 ends
FEW_KEYS = 1024  # rounding their weights shows in a row's sum; of more of them it averages out
LOWEST = -1e30  # where running maxima start: finite, so that hidden scores (-inf) give 0, not NaN

Item = TypeVar("Item")
State = tuple[jax.Array, jax.Array, jax.Array]  # acc, total and peak of some rows


class Plan(NamedTuple):
    """What the program is compiled for."""

    mask: Mask
    scale: float
    softcap: float | None
    blocks: ForwardBlocks
    num_keys: int
    num_blocks: int  # of queries
    num_chunks: int  # of keys
    has_ids: bool
    has_staircase: bool
    paths: str  # "both", or "online" or "bounded" alone
    precision: Any  # of the products

    @property
    def chunk_tiles(self) -> int:
        return self.blocks.chunk // self.blocks.keys


class Refs(NamedTuple):
    """Scalars of all programs; the block's inputs and outputs; scratch that lives across chunks."""

    ranges: Any  # of masks.block_ranges, int32 (B * blocks * 4,)
    starts: Any  # position of query 0 minus that of key 0, int32 (B,)
    bounds: Any  # of the scores, in units of log 2, f32 (B * N,)
    sinks: Any  # in units of log 2, f32 (N,); -inf for none
    q: Any  # (Q, H)
    k: Any  # (C, H)
    v: Any  # (C, V)
    q_ids: Any  # (1, Q) or None
    k_ids: Any  # (1, C) or None
    out: Any  # (Q, V)
    lse: Any  # (1, Q)
    acc: Any  # (Q, V): sums of p v
    total: Any  # (Q, L): sums of p, a part in each lane (the whole in each with mxu_sums)
    # (Q, L): running maximum, the same in all lanes; of bounded scores, what rounding has added to
    # the weights (_fold)
    peak: Any
    ids: Any  # (Q, L): ids of the queries, the same in all lanes, or None

    def read(self, rows: slice) -> State:
        return self.acc[rows, :], self.total[rows, :], self.peak[rows, :]

    def write(self, rows: slice, state: State) -> None:
        self.acc[rows, :], self.total[rows, :], self.peak[rows, :] = state


def kernel(*all_refs: Any, plan: Plan) -> None:
    refs = Refs(*all_refs)
    b, n = pl.program_id(0), pl.program_id(1)
    is_bounded = refs.bounds[b * pl.num_programs(1) + n] < BOUNDED
    if plan.has_ids:
        pl.when(pl.program_id(3) == 0)(lambda: _spread_ids(refs))
    if plan.paths == "both":
        pl.when(is_bounded)(lambda: _visit(plan, refs, has_peak=False))
        pl.when(jnp.logical_not(is_bounded))(lambda: _visit(plan, refs, has_peak=True))
    else:
        _visit(plan, refs, has_peak=plan.paths == "online")


def _visit(plan: Plan, refs: Refs, has_peak: bool) -> None:
    """All tiles of this chunk that this block of queries needs."""
    b, i, c = pl.program_id(0), pl.program_id(2), pl.program_id(3)
    at = (b * plan.num_blocks + i) * 4
    first, full_first, full_last, last = (
        jnp.clip(refs.ranges[at + x] - c * plan.chunk_tiles, 0, plan.chunk_tiles) for x in range(4)
    )

    def full_tile(j: jax.Array, _: None) -> None:
        _tile(plan, refs, j, has_peak, is_full=True)

    if plan.has_staircase:
        here = i * plan.blocks.queries - c * plan.blocks.chunk
        stairs = functools.partial(_staircase, plan, refs, here, has_peak)
        if plan.mask.window is None:
            jax.lax.fori_loop(full_first, full_last, full_tile, None)
            pl.when((here >= 0) & (here < plan.blocks.chunk))(lambda: stairs(0))
        else:  # the first block has no keys before it, and all others those of a window
            before_window = _up(plan.mask.window - 1)
            pl.when(i == 0)(lambda: stairs(0))
            pl.when(i > 0)(lambda: stairs(before_window))
        return
    before = full_first - first

    def cut_tile(x: jax.Array, _: None) -> None:
        j = jnp.where(x < before, first + x, full_last + x - before)
        _tile(plan, refs, j, has_peak, is_full=False)

    rows = slice(0, plan.blocks.queries)
    pl.when(c == 0)(lambda: refs.write(rows, _start(plan, refs, rows, has_peak)))
    jax.lax.fori_loop(full_first, full_last, full_tile, None)
    jax.lax.fori_loop(0, before + last - full_last, cut_tile, None)
    pl.when(c == plan.num_chunks - 1)(lambda: _finish(plan, refs, rows, refs.read(rows), has_peak))


def _tile(plan: Plan, refs: Refs, j: jax.Array, has_peak: bool, is_full: bool) -> None:
    """Adds tile j of the chunk to the accumulators."""
    Q, J = plan.blocks.queries, plan.blocks.keys
    keys = pl.ds(pl.multiple_of(j * J, J), J)
    part = Q // plan.blocks.parts if is_full and has_peak else Q

    def look_up(at: int) -> jax.Array:
        scores_QJ = _scores(plan, refs.q[at : at + part, :], refs.k[keys, :], has_peak)
        return scores_QJ if is_full else _hide_by_position(plan, refs, j, keys, scores_QJ)

    for at, scores_QJ in _one_ahead(range(0, Q, part), look_up):
        rows = slice(at, at + part)
        state = _fold(plan, refs.read(rows), scores_QJ, refs.v[keys, :], has_peak, not is_full)
        refs.write(rows, state)


def _hide_by_position(
    plan: Plan, refs: Refs, j: jax.Array, keys: Any, scores_QJ: jax.Array
) -> jax.Array:
    """-inf for the hidden scores of the block's queries with the keys of tile j of the chunk."""
    Q, J = scores_QJ.shape
    first_key = (pl.program_id(3) * plan.chunk_tiles + j) * J
    first_query = refs.starts[pl.program_id(0)] + pl.program_id(2) * Q
    query, key = (jax.lax.broadcasted_iota(jnp.int32, (Q, J), d) for d in (0, 1))
    ids = (_across(refs.ids[...], J), refs.k_ids[:, keys]) if plan.has_ids else ()
    visible = tile_mask(plan.mask, query + (first_query - first_key), key, *ids)
    if plan.num_keys % J:
        exists = key < plan.num_keys - first_key
        visible = exists if visible is None else visible & exists
    return scores_QJ if visible is None else jnp.where(visible, scores_QJ, -jnp.inf)


def _one_ahead(begins: Sequence[int], look_up: Callable[[int], Item]) -> Iterator[tuple[int, Item]]:
    """Each with what is looked up for it, after the next one's has been asked for.

    So the matrix unit has work while exponentials are taken.
    """
    following = look_up(begins[0])
    for at, then in zip(begins, [*begins[1:], None], strict=True):
        current = following
        if then is not None:
            following = look_up(then)
        yield at, current


def _staircase(
    plan: Plan, refs: Refs, diagonal: jax.Array, has_peak: bool, num_before: int
) -> None:
    """The keys near the diagonal, in steps of a few queries, masked at the ends only.

    diagonal is the chunk's key at the position of the block's first query; num_before keys before
    it belong to the stairs.  Nothing beyond is seen by these queries, so their results are finished
    and their accumulators made ready for the next block here, hidden under the matrix products.
    The widest step comes first, so that what nothing is left to hide is the narrowest.
    """
    window = plan.mask.window
    step = plan.blocks.diagonal if has_peak else plan.blocks.bounded_diagonal
    diagonal = pl.multiple_of(diagonal, plan.blocks.queries)

    def look_up(at: int) -> tuple[jax.Array, jax.Array]:
        """Scores and values of the step that begins with this query."""
        before = at if window is None else min(at + num_before, _up(window - 1))
        keys = pl.ds(pl.multiple_of(diagonal + (at - before), LANES), before + step)
        scores = _scores(plan, refs.q[at : at + step, :], refs.k[keys, :], has_peak)
        return _hide(scores, before, plan.mask), refs.v[keys, :]

    for at, (scores, v) in _one_ahead(range(0, plan.blocks.queries, step)[::-1], look_up):
        rows = slice(at, at + step)
        state = fresh = _start(plan, refs, rows, has_peak)
        if window is None:
            is_first = pl.program_id(2) == 0  # then there were no tiles, and nothing was written
            pairs = zip(fresh, refs.read(rows), strict=True)
            state = cast(State, tuple(jnp.where(is_first, *pair) for pair in pairs))
        _finish(plan, refs, rows, _fold(plan, state, scores, v, has_peak, True), has_peak)
        if window is None:
            refs.write(rows, fresh)


def _hide(scores_QJ: jax.Array, before: int, mask: Mask) -> jax.Array:
    """-inf for the hidden scores of Q queries with the `before` keys before them and Q of theirs."""
    Q, J = scores_QJ.shape
    # of keys too old for some
    stop = 0 if mask.window is None else max(_up(before + Q - mask.window), 0)
    ranges = [(0, stop), (stop, before), (before, J)] if stop < before else [(0, J)]
    parts = []
    for low, high in (r for r in ranges if r[0] < r[1]):
        part = scores_QJ[:, low:high]
        if (low, high) != (stop, before):
            query, key = (jax.lax.broadcasted_iota(jnp.int32, part.shape, d) for d in (0, 1))
            visible = tile_mask(mask, query + (before - low), key)
            part = part if visible is None else jnp.where(visible, part, -jnp.inf)
        parts.append(part)
    return jnp.concatenate(parts, axis=1)


def _start(plan: Plan, refs: Refs, rows: slice, has_peak: bool) -> State:
    """A sink is a key of value zero that has been seen already."""
    Q, V = rows.stop - rows.start, refs.acc.shape[1]
    sink = refs.sinks[pl.program_id(1)]
    peak = jnp.maximum(sink, LOWEST) if has_peak else 0.0
    total_QL = jnp.exp2(jnp.full((Q, LANES), sink - peak))
    if not (plan.blocks.mxu_sums and has_peak):
        total_QL /= LANES  # each lane takes its part
    return jnp.zeros((Q, V), jnp.float32), total_QL, jnp.full((Q, LANES), peak)


def _finish(plan: Plan, refs: Refs, rows: slice, state: State, has_peak: bool) -> None:
    """Divides by the sums and writes some rows of the results."""
    acc_QV, total_QL, peak_QL = state
    over_lanes = lambda x_QL: jnp.broadcast_to(jnp.sum(x_QL, axis=1, keepdims=True), x_QL.shape)
    if not (plan.blocks.mxu_sums and has_peak):
        total_QL = over_lanes(total_QL)
    divisor_QL = total_QL
    if not has_peak:
        divisor_QL, peak_QL = total_QL + over_lanes(peak_QL), jnp.zeros_like(peak_QL)
    inverse_QL = jnp.where(total_QL == 0.0, 0.0, 1.0 / divisor_QL)
    refs.out[rows, :] = (acc_QV * _across(inverse_QL, acc_QV.shape[1])).astype(refs.out.dtype)
    refs.lse[:, rows] = (_as_row(peak_QL) + jnp.log2(_as_row(total_QL))) / LOG2_E


def _scores(plan: Plan, q_QH: jax.Array, k_JH: jax.Array, has_peak: bool) -> jax.Array:
    """Scores in units of log 2, or their tangent's argument."""
    factor = plan.scale * LOG2_E if plan.softcap is None else plan.scale / plan.softcap
    if is_split := plan.blocks.split_scale and has_peak and q_QH.dtype == jnp.bfloat16:
        # scaled queries as a sum of two bf16: f32's accuracy without a product per score, and
        # twice the depth costs nothing where the matrix unit is 256 deep
        scaled_QH = q_QH.astype(jnp.float32) * factor
        high_QH = scaled_QH.astype(q_QH.dtype)
        low_QH = (scaled_QH - high_QH.astype(jnp.float32)).astype(q_QH.dtype)
        q_QH = jnp.concatenate([high_QH, low_QH], axis=1)
        k_JH = jnp.concatenate([k_JH, k_JH], axis=1)
    scores_QJ = jax.lax.dot_general(
        q_QH,
        k_JH,
        (((1,), (1,)), ((), ())),
        precision=plan.precision,
        preferred_element_type=jnp.float32,
    )
    if not is_split:
        scores_QJ *= factor
    return scores_QJ if plan.softcap is None else jnp.tanh(scores_QJ) * (plan.softcap * LOG2_E)


def _fold(
    plan: Plan, state: State, scores_QJ: jax.Array, v_JV: jax.Array, has_peak: bool, is_cut: bool
) -> State:
    """The accumulators after one more tile of keys.

    Rows of few keys end in tiles that the mask cuts; without a running maximum they are divided by
    the sum of what has been multiplied, their rounded weights, so that the one weight of a row of
    one key is exactly 1; in the place of the maximum stands what rounding has added to the sums.
    """
    J, V = v_JV.shape
    has_few = is_cut and not has_peak and v_JV.dtype != jnp.float32 and J <= FEW_KEYS
    acc_QV, total_QL, peak_QL = state
    if has_peak:
        old_QL, peak_QL = peak_QL, jnp.maximum(peak_QL, jnp.max(scores_QJ, axis=1, keepdims=True))
        shrink_QL = jnp.exp2(old_QL - peak_QL)
        acc_QV, total_QL = acc_QV * _across(shrink_QL, V), total_QL * shrink_QL
        scores_QJ -= _across(peak_QL, J)
    p_QJ = jnp.exp2(scores_QJ)
    weights_QJ = p_QJ.astype(v_JV.dtype)
    product = functools.partial(
        jnp.dot, precision=plan.precision, preferred_element_type=jnp.float32
    )
    rounded_QL = None
    if plan.blocks.mxu_sums and (has_peak or has_few):
        # 128 more columns cost nothing where the matrix unit is 256 wide
        ones_JL = jnp.ones((J, LANES), v_JV.dtype)
        both = product(weights_QJ, jnp.concatenate([v_JV, ones_JL], axis=1))
        acc_QV, rounded_QL = acc_QV + both[:, :V], both[:, V:]  # the whole in each lane
        if has_peak:
            return acc_QV, total_QL + rounded_QL, peak_QL
    else:
        acc_QV += product(weights_QJ, v_JV)
    sum_QL = _in_lanes(p_QJ)
    if has_few:
        if rounded_QL is None:
            rounded_QL = _in_lanes(weights_QJ.astype(jnp.float32))
        else:
            rounded_QL /= LANES
        peak_QL += rounded_QL - sum_QL
    return acc_QV, total_QL + sum_QL, peak_QL


def _in_lanes(x_QJ: jax.Array) -> jax.Array:
    """Sums of a row, a part in each lane."""
    return functools.reduce(
        jnp.add, [x_QJ[:, at : at + LANES] for at in range(0, x_QJ.shape[1], LANES)]
    )


def _as_row(x_QL: jax.Array) -> jax.Array:
    """(1, Q): in each square of 128 rows only the diagonal is left, and summed."""
    row, lane = (jax.lax.broadcasted_iota(jnp.int32, (LANES, LANES), d) for d in (0, 1))
    squares = [x_QL[at : at + LANES] for at in range(0, x_QL.shape[0], LANES)]
    diagonals = [jnp.where(row == lane, x, 0.0).sum(0, keepdims=True) for x in squares]
    return jnp.concatenate(diagonals, axis=1)


def _spread_ids(refs: Refs) -> None:
    refs.ids[...] = jnp.broadcast_to(refs.q_ids[...], refs.ids.shape[::-1]).T


def _up(n: int) -> int:
    return -(-n // LANES) * LANES


def _across(x_QL: jax.Array, width: int) -> jax.Array:
    """The number that all lanes of a row share, for another number of columns."""
    whole, rest = divmod(width, LANES)
    parts = [x_QL] * whole + ([x_QL[:, :rest]] if rest else [])
    return jnp.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]
