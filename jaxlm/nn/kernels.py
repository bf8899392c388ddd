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

from jaxlm.sharding.rules import ROWS, spec
from pallas_kernels.attention import api as attention_api
from pallas_kernels.cross_entropy import api as loss_api
from pallas_kernels.cross_entropy.rows import CrossEntropy, Task
from pallas_kernels.tuning.chips import GPUS, chip_of, gpu_of

Impl = attention_api.Impl
BATCH_AXES, VOCAB_AXIS, EMBED_AXIS = ("data", "fsdp"), "model", "fsdp"


def mesh_chip() -> str | None:
    """The TPU or GPU of the mesh that surrounds the trace; None elsewhere."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    kind = "" if device is None else device.device_kind
    return chip_of(kind) or gpu_of(kind)


def _mesh_tpu() -> str | None:
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
    **options: Any,
) -> jax.Array:
    """Causal self-attention, (B, T, N, H); options as in pallas_kernels.attention.api.

    logit_bound:  a scalar
    """
    chip = mesh_chip()
    arrays = {"q_BTNH": q_BTNH, "k_BSKH": k_BTKH, "v_BSKH": v_BTKH}
    axes = {
        "q_BTNH": ("batch", "seq", "heads", "head_dim"),
        "k_BSKH": ("batch", "seq", "kv_heads", "head_dim"),
        "v_BSKH": ("batch", "seq", "kv_heads", "head_dim"),
        "segment_ids": ("batch", "seq"),
        "sinks_N": ("heads",),
        "logit_bound": (),
    }
    if segment_ids_BT is not None:
        arrays["segment_ids"] = segment_ids_BT
    if sinks_N is not None:
        arrays["sinks_N"] = sinks_N
    if logit_bound is not None:
        arrays["logit_bound"] = logit_bound

    def run(arrays: dict[str, Any]) -> jax.Array:
        ids_BT = arrays.pop("segment_ids", None)
        ids = None if ids_BT is None else (ids_BT, ids_BT)
        return attention_api.attention(**arrays, segment_ids=ids, chip=chip, **options)

    if chip is None:
        return run(arrays)
    mapped = jax.shard_map(
        run,
        in_specs=({name: spec(axes[name]) for name in arrays},),
        out_specs=spec(axes["q_BTNH"]),
        check_vma=False,
    )
    return mapped(arrays)


def linear_cross_entropy(
    x_RD: jax.Array,
    table_VD: jax.Array,
    targets_R: jax.Array,
    weights_R: jax.Array,
    *,
    softcap: float | None,
    z_loss: jax.Array | float,
    impl: Impl,
) -> CrossEntropy:
    """Sums over all rows of all devices, as in pallas_kernels.cross_entropy.api, and their lse.

    Rows are split over the data axes, the vocabulary over the model axis.  Only `loss` has a
    derivative, by x and by the table; it is computed along with the loss.
    """
    chip, z_loss = _mesh_tpu(), jnp.asarray(z_loss, jnp.float32)
    arrays = x_RD, table_VD, targets_R, weights_R
    if jax.sharding.get_abstract_mesh().empty:
        return loss_api.linear_cross_entropy(*arrays, softcap=softcap, z_loss=z_loss, impl=impl)
    if impl == "auto":
        impl = "pallas" if chip else "xla"
    choose = partial(loss_api.choose, impl, chip)  # by the sizes on each device
    return _sharded_loss(softcap, choose, *arrays, z_loss)


def is_loss_fused(impl: Impl, num_rows: int, vocab_size: int) -> bool:
    """Whether the loss goes without whole logits: by choice, by a kernel, or by their size."""
    if impl == "auto":
        return _mesh_tpu() is not None or num_rows * vocab_size > loss_api.WHOLE_LOGITS
    return impl != "reference"


def chosen(attention_impl: Impl, loss_impl: Impl, rows: int, T: int, V: int) -> dict[str, str]:
    """What "auto" comes to for a batch, on the mesh that surrounds the call: for env.json.

    Raises ValueError for a kernel that was asked for and cannot run.
    """
    chip, tpu = mesh_chip(), _mesh_tpu()
    devices = f"the mesh is of {chip or jax.default_backend()} devices"
    why_not = None if chip else f"{devices}, not of TPUs or GPUs that have a kernel"
    loss: Impl = "pallas" if tpu else "xla"
    if loss_impl == "pallas" and not tpu:
        raise ValueError(f"loss impl 'pallas' cannot run: {devices}, not of TPUs")
    if loss_impl != "auto":
        loss = loss_impl
    elif not is_loss_fused(loss_impl, rows * T, V):
        loss = "reference"
    return {
        "attention": attention_api.choose(attention_impl, why_not, T, can_skip=True),
        "loss": loss,
        "chip": chip or "none",
    }


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _sharded_loss(softcap, choose, x_RD, table_VD, targets_R, weights_R, z_loss):  # type: ignore[no-untyped-def]
    def local(x_RD, table_VD, targets_R, weights_R, z_loss):
        task = Task(softcap, z_loss, None, VOCAB_AXIS)
        return _total(
            loss_api.forward(x_RD, table_VD, targets_R, weights_R, task, choose(x_RD, table_VD))
        )

    return _map(local, _SUMS)(x_RD, _rounded(table_VD, x_RD), targets_R, weights_R, z_loss)


def _sharded_loss_fwd(softcap, choose, x_RD, table_VD, targets_R, weights_R, z_loss):  # type: ignore[no-untyped-def]
    def local(x_RD, table_VD, targets_R, weights_R, z_loss):
        task = Task(softcap, z_loss, None, VOCAB_AXIS)
        found, dx_RD, dtable_VD = loss_api.forward_and_gradients(
            x_RD, table_VD, targets_R, weights_R, task, choose(x_RD, table_VD)
        )
        # each device keeps the part of the sum that its slice of the table needs
        dtable_VD = jax.lax.psum_scatter(dtable_VD, EMBED_AXIS, scatter_dimension=1, tiled=True)
        return _total(found), dx_RD, jax.lax.psum(dtable_VD, "data")

    out_specs = (_SUMS, ROWS, jax.P(VOCAB_AXIS, EMBED_AXIS))
    arrays = x_RD, _rounded(table_VD, x_RD), targets_R, weights_R, z_loss
    found, dx_RD, dtable_VD = _map(local, out_specs)(*arrays)
    return found, (dx_RD, dtable_VD.astype(table_VD.dtype))


def _sharded_loss_bwd(softcap, choose, gradients, cotangents):  # type: ignore[no-untyped-def]
    del softcap, choose
    return *loss_api.scaled(gradients, cotangents), None, None, None


_sharded_loss.defvjp(_sharded_loss_fwd, _sharded_loss_bwd)

# how the results of all devices make one: sums are the same everywhere, lse is split by rows
_SUMS: Any = CrossEntropy._make([*[jax.P()] * 5, ROWS])


def _rounded(table_VD: jax.Array, x_RD: jax.Array) -> jax.Array:
    """In the products' dtype where it is gathered: half the bytes to move and to hold.

    Where it is not, the kernel rounds tile by tile and no copy is held.
    """
    is_split = jax.sharding.get_abstract_mesh().shape[EMBED_AXIS] > 1
    return table_VD.astype(x_RD.dtype) if is_split else table_VD


def _map(local: Any, out_specs: Any) -> Any:
    in_specs = (ROWS, jax.P(VOCAB_AXIS, None), ROWS, ROWS, jax.P())
    return jax.shard_map(local, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def _total(found: CrossEntropy) -> CrossEntropy:
    *sums, lse_R = found
    return CrossEntropy._make([*(jax.lax.psum(x, BATCH_AXES) for x in sums), lse_R])
