# SPDX-License-Identifier: Apache-2.0
"""Kernels under a mesh: every device runs them on its own rows, heads and slice of the vocabulary.

The compiler cannot split a kernel as it splits a product, so on TPUs and GPUs the calls are mapped
over the mesh by hand (shard_map), in the layout that the table of rules gives anyway.  Elsewhere
attention and loss are plain array code and need no wrapper.  The loss has a kernel for TPUs only.

Legend: B batch  T positions  R = B*T  D model width  V vocabulary  N query heads  K kv heads
        H head width
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.nn import context, ring
from jaxlm.sharding.rules import ROWS, num_parts, spec
from pallas_kernels.attention import api as attention_api
from pallas_kernels.cross_entropy import api as loss_api
from pallas_kernels.cross_entropy.rows import CrossEntropy, Task
from pallas_kernels.tuning.chips import GPUS, chip_of, gpu_of

Impl = attention_api.Impl
VOCAB_AXIS, EMBED_AXES = spec(("vocab", "embed"))
ROW_AXES = tuple(jax.tree.leaves((*ROWS,)))
REST_AXES = tuple(axis for axis in ROW_AXES if axis not in EMBED_AXES)


def mesh_chip() -> str | None:
    """The TPU or GPU of the mesh that surrounds the trace; None elsewhere."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    kind = "" if device is None else device.device_kind
    return chip_of(kind) or gpu_of(kind)


def mesh_tpu() -> str | None:
    """The TPU of the mesh that surrounds the trace; None elsewhere."""
    chip = mesh_chip()
    return None if chip in GPUS else chip


def attention(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    *,
    segment_ids_BT: jax.Array | None,
    sinks_N: jax.Array | None,
    logit_bound: jax.Array | None = None,
    window: int | None = None,
    softcap: float | None = None,
    impl: Impl = "auto",
) -> jax.Array:
    """Causal self-attention, (B, T, N, H).

    Where queries are split along the sequence, chunks stand in zig-zag order: see nn/context.py.
    window, softcap, impl:  as in pallas_kernels.attention.api; logit_bound is a scalar
    Raises ValueError as that does, and for "xla" where queries are split along the sequence.
    """
    options = context.Options(window, softcap, impl, mesh_chip())
    run: Any = partial(_whole_sequence, options=options)
    if context.is_split():
        _check_split(impl)
        is_ring = spec(("key_seq",))[0] is not None
        run = partial(ring.ring if is_ring else context.all_gather, options=options)
    elif options.chip is None and num_parts("context") == 1:
        return run(q_BTNH, k_BTKH, v_BTKH, segment_ids_BT, sinks_N, logit_bound)
    queries = spec(("batch", "query_seq", "query_heads", "head_dim"))
    keys = spec(("batch", "query_seq", "key_heads", "head_dim"))
    in_specs = (queries, keys, keys, spec(("batch", "query_seq")), spec(("query_heads",)), jax.P())
    mapped = jax.shard_map(run, in_specs=in_specs, out_specs=queries, check_vma=False)
    return mapped(q_BTNH, k_BTKH, v_BTKH, segment_ids_BT, sinks_N, logit_bound)


def _check_split(impl: Impl) -> None:
    if impl == "xla":  # it has no offsets
        n = num_parts(context.AXIS)
        raise ValueError(
            f"attention impl 'xla' cannot run: the sequence is split over {n} devices; "
            "allowed: auto, reference, pallas"
        )


def _whole_sequence(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    segment_ids_BT: jax.Array | None,
    sinks_N: jax.Array | None,
    logit_bound: jax.Array | None,
    options: context.Options,
) -> jax.Array:
    return attention_api.attention(
        q_BTNH,
        k_BTKH,
        v_BTKH,
        segment_ids=None if segment_ids_BT is None else (segment_ids_BT, segment_ids_BT),
        sinks_N=sinks_N,
        logit_bound=logit_bound,
        **options._asdict(),
    )


def linear_cross_entropy(
    x_BTD: jax.Array,
    table_VD: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    *,
    softcap: float | None,
    z_loss: jax.Array | float,
    impl: Impl,
) -> CrossEntropy:
    """Sums over all positions of all devices, as in pallas_kernels.cross_entropy.api,
    and their lse, (B, T).

    Rows and positions are split over the data axes, the vocabulary over the model axis.  Only
    `loss` has a derivative, by x and by the table; it is computed along with the loss.
    Raises ValueError as pallas_kernels.cross_entropy.api.
    """
    for name, array in (("targets", targets_BT), ("weights", weights_BT)):
        if x_BTD.ndim != 3 or array.shape != x_BTD.shape[:2]:
            raise ValueError(f"x {x_BTD.shape} and {name} {array.shape} must be (B, T, D), (B, T)")
    arrays = x_BTD, table_VD, targets_BT, weights_BT
    flat: Any = _flat(*arrays)
    loss_api.check(*flat, softcap=softcap, z_loss=z_loss)
    z_loss = jnp.asarray(z_loss, jnp.float32)
    # the compiler splits the definition, which is plain array code
    if jax.sharding.get_abstract_mesh().empty or impl == "reference":
        options: Any = dict(softcap=softcap, z_loss=z_loss, impl=impl)
        found = loss_api.linear_cross_entropy(*flat, **options)
        return found._replace(lse_R=found.lse_R.reshape(targets_BT.shape))
    return _sharded_loss(softcap, partial(_choose_loss, impl), *arrays, z_loss)


def _choose_loss(impl: Impl, x_RD: loss_api.Shaped, table_VD: loss_api.Shaped) -> Any:
    """As pallas_kernels.cross_entropy.api.choose, for what each device of the mesh holds."""
    chip = mesh_tpu()
    return loss_api.choose("xla" if impl == "auto" and chip is None else impl, chip, x_RD, table_VD)


def is_loss_fused(impl: Impl, num_rows: int, vocab_size: int) -> bool:
    """Whether the loss goes without whole logits: by choice, by a kernel, or by their size."""
    if impl == "auto":
        return mesh_tpu() is not None or num_rows * vocab_size > loss_api.WHOLE_LOGITS
    return impl != "reference"


def _loss_chosen(impl: Impl, R: int, V: int, D: int, dtype: str) -> str:
    """ "reference", "xla" or "pallas": what the loss of R rows runs by on this mesh."""
    if not is_loss_fused(impl, R, V):
        return "reference"
    x_RD = jax.ShapeDtypeStruct((R, D), dtype)
    table_VD = jax.eval_shape(_rounded, jax.ShapeDtypeStruct((V, D), jnp.float32), x_RD)
    how = _choose_loss(impl, x_RD, table_VD)
    return how if isinstance(how, str) else "pallas"


def chosen(
    attention_impl: Impl,
    loss_impl: Impl,
    rows: int,
    T: int,
    V: int,
    D: int = 1,
    dtype: str = "bfloat16",
) -> dict[str, str]:
    """What "auto" comes to for a batch, on the mesh that surrounds the call: for env.json.

    D, dtype: of the model's stream; the loss of a wide one has no kernel

    Raises ValueError for a kernel, or "xla", that was asked for and cannot run.
    """
    is_split, num_queries = context.is_split(), T
    if is_split:  # attention is called for a chunk of queries, two to a device
        _check_split(attention_impl)
        num_queries = T // (2 * num_parts(context.AXIS))
    chip, tpu = mesh_chip(), mesh_tpu()
    devices = f"the mesh is of {chip or jax.default_backend()} devices"
    why_not = None if chip else f"{devices}, not of TPUs or GPUs that have a kernel"
    if loss_impl == "pallas" and not tpu:
        raise ValueError(f"loss impl 'pallas' cannot run: {devices}, not of TPUs")
    return {
        "attention": attention_api.choose(attention_impl, why_not, num_queries, not is_split),
        "loss": _loss_chosen(loss_impl, rows * T, V, D, dtype),
        "chip": chip or "none",
    }


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _sharded_loss(softcap, choose, x_BTD, table_VD, targets_BT, weights_BT, z_loss):  # type: ignore[no-untyped-def]
    def local(x_BTD, table_VD, targets_BT, weights_BT, z_loss):
        x_RD, _, targets_R, weights_R = _flat(x_BTD, table_VD, targets_BT, weights_BT)
        task = Task(softcap, z_loss, None, VOCAB_AXIS)
        how = choose(x_RD, table_VD)
        found = loss_api.forward(x_RD, table_VD, targets_R, weights_R, task, how)
        return _total(found, targets_BT)

    return _map(local, _SUMS)(x_BTD, _rounded(table_VD, x_BTD), targets_BT, weights_BT, z_loss)


def _sharded_loss_fwd(softcap, choose, x_BTD, table_VD, targets_BT, weights_BT, z_loss):  # type: ignore[no-untyped-def]
    def local(x_BTD, table_VD, targets_BT, weights_BT, z_loss):
        x_RD, _, targets_R, weights_R = _flat(x_BTD, table_VD, targets_BT, weights_BT)
        task = Task(softcap, z_loss, None, VOCAB_AXIS)
        found, dx_RD, dtable_VD = loss_api.forward_and_gradients(
            x_RD, table_VD, targets_R, weights_R, task, choose(x_RD, table_VD)
        )
        # each device keeps the part of the sum that its slice of the table needs
        dtable_VD = _rounded(dtable_VD, x_BTD)  # as the gradients of all other matrices
        dtable_VD = jax.lax.psum_scatter(dtable_VD, EMBED_AXES, scatter_dimension=1, tiled=True)
        return (
            _total(found, targets_BT),
            dx_RD.reshape(x_BTD.shape),
            jax.lax.psum(dtable_VD, REST_AXES),
        )

    out_specs = (_SUMS, ROWS, jax.P(VOCAB_AXIS, EMBED_AXES))
    arrays = x_BTD, _rounded(table_VD, x_BTD), targets_BT, weights_BT, z_loss
    found, dx_BTD, dtable_VD = _map(local, out_specs)(*arrays)
    return found, (dx_BTD, dtable_VD.astype(table_VD.dtype))


def _sharded_loss_bwd(softcap, choose, gradients, cotangents):  # type: ignore[no-untyped-def]
    del softcap, choose
    return *loss_api.scaled(gradients, cotangents), None, None, None


_sharded_loss.defvjp(_sharded_loss_fwd, _sharded_loss_bwd)


# how the results of all devices make one: sums are the same everywhere, lse is split by rows
_SUMS: Any = CrossEntropy._make([*[jax.P()] * 5, ROWS])


def _flat(
    x_BTD: jax.Array, table_VD: jax.Array, targets_BT: jax.Array, weights_BT: jax.Array
) -> tuple[jax.Array, ...]:
    """One dimension of rows R = B*T."""
    x_RD = x_BTD.reshape(-1, x_BTD.shape[-1])
    return x_RD, table_VD, targets_BT.reshape(-1), weights_BT.reshape(-1)


def _rounded(table_VD: jax.Array, x_BTD: jax.Array) -> jax.Array:
    """The table, or its gradient, in the products' dtype where it is split: half the bytes to move.

    Where it is whole, the kernel rounds tile by tile and no copy is held.
    """
    return table_VD.astype(x_BTD.dtype) if num_parts(*EMBED_AXES) > 1 else table_VD


def _map(local: Any, out_specs: Any) -> Any:
    in_specs = (ROWS, jax.P(VOCAB_AXIS, None), ROWS, ROWS, jax.P())
    return jax.shard_map(local, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def _total(found: CrossEntropy, targets_BT: jax.Array) -> CrossEntropy:
    *sums, lse_R = found
    sums = [jax.lax.psum(x, ROW_AXES) for x in sums]
    return CrossEntropy._make([*sums, lse_R.reshape(targets_BT.shape)])
