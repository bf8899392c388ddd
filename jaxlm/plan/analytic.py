# SPDX-License-Identifier: Apache-2.0
"""The first answer, by arithmetic alone: memory, work and a range of time, in milliseconds.

What it cannot know (what the compiler fuses, copies, prefetches and overlaps) the compiled answer
does.  Standard library only.

Legend: D model width  F MLP width  H head width  T positions
"""

import dataclasses

from jaxlm.config import RunConfig, resolve
from jaxlm.model.accounting import forward_flops_per_token, num_params, train_flops_per_token
from jaxlm.model.config import ModelConfig
from jaxlm.plan.topology import Topology

STATE_COPIES = {"adamw": 2.0, "lion": 1.0, "adafactor": 0.02, "schedule_free": 2.0, "muon": 1.0}
F32 = 4
PRODUCT_SHARE = 0.7  # of the peak: what long matrix products and kernels reach together


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device, by owner."""

    parameters: float
    optimizer_state: float
    gradients: float
    activations: float  # stored between the forward and the backward pass
    temporaries: float

    @property
    def total(self) -> float:
        return sum(dataclasses.astuple(self))


@dataclasses.dataclass(frozen=True)
class Work:
    """What one device does in a step, and how long it takes at the chip's peaks; predicted."""

    model_flops: float
    executed_flops: float  # with what remat computes again
    hbm_bytes: float
    wire_bytes: float
    fastest_s: float  # perfect overlap
    slowest_s: float  # none


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The analytic answer."""

    mesh: dict[str, int]
    tokens_per_step: int
    memory: Memory
    work: Work
    fits: bool


def estimate(config: RunConfig, topology: Topology) -> Estimate:
    """Raises ConfigError when mesh, batch or widths do not divide over the devices."""
    config.mesh.check_slices(topology.num_slices)
    config.mesh.shape(topology.num_devices, f"take another --topology than {topology.name}")
    resolved = resolve(config, topology.num_devices)
    mesh = resolved.mesh
    memory = _memory(config, mesh)
    return Estimate(
        mesh=mesh,
        tokens_per_step=resolved.tokens_per_step,
        memory=memory,
        work=_work(config, mesh, topology),
        fits=memory.total <= topology.chip.hbm_bytes,
    )


def stored_per_token(c: ModelConfig, sharing: int = 1) -> float:
    """Numbers that a layer stores for the backward pass, by remat policy, averaged over the depth.

    Of experts nothing is kept but in "none": there what `_expert_values` counts.
    """
    D, H = c.embed_dim, c.head_width
    F = c.ffn_dim * (1 - c.num_sparse_layers / c.num_layers)
    heads, kv = c.num_heads * H, c.kv_heads * H
    wide = 2 if c.is_gated else 1
    products = heads + 2 * kv + D + wide * F  # nothing needs what the last one, down, gives
    norm_inputs = heads + kv if c.qk_norm else 0
    experts = _expert_values(c, sharing) * c.num_sparse_layers / c.num_layers
    return {
        "full": D,
        "offload": D,  # the rest is the host's
        "block_inputs": 3 * D,
        "attention": D + 2 * heads + 2 * kv,
        "products": 2 * D + 2 * heads + 2 * kv + norm_inputs + wide * F,
        "products_but_up": 2 * D + 2 * heads + 2 * kv + norm_inputs + (wide - 1) * F,
        "dots": D + products,
        "none": D + products + 3 * D + 2 * heads + kv + (wide + 1) * F + experts,
    }[c.remat]


def recomputed_flops_per_token(c: ModelConfig, seq_len: int, is_sent: bool) -> float:
    """What the backward pass computes again, by remat policy; what experts do always but in "none".

    is_sent: rows go to other devices' experts, whose last product is then computed again, too
    """
    forward = forward_flops_per_token(c, seq_len)
    up = forward["mlp"] / (3 if c.is_gated else 2)  # one of the MLP's products
    experts = forward.get("experts", 0.0)
    experts -= 0.0 if is_sent else experts / (3 if c.is_gated else 2)
    experts += forward.get("routers", 0.0)
    scores, layers = forward["scores and values"], forward["projections"] + forward["mlp"] - up
    share = (c.num_heads + 2 * c.kv_heads) / (2 * (c.num_heads + c.kv_heads))
    into_kernel = 0.0 if c.qk_norm else forward["projections"] * share  # kept with its results
    return {
        "none": 0.0,
        "dots": scores + experts,
        "attention": layers - into_kernel + experts,
        "products": experts,
        "products_but_up": up + experts,
    }.get(c.remat, layers + scores + experts)


@dataclasses.dataclass(frozen=True)
class _Split:
    """How many ways each kind of thing is split, and what one device holds of the tokens."""

    weights: int  # parameters of all but experts, along their width
    tensor: int
    experts: int
    stages: int
    replicas: int  # that hold the same parameters, of one slice
    tokens: float  # of one micro-batch, of the devices along the model axis together


def _split(config: RunConfig, mesh: dict[str, int]) -> _Split:
    wide = mesh["fsdp"] * mesh["expert"] * mesh["context"]
    groups = mesh["slice"] * mesh["data"] * mesh["fsdp"] * mesh["expert"]
    rows = config.data.batch_size / config.train.num_micro_batches / groups
    return _Split(
        weights=wide,
        tensor=mesh["model"],
        experts=mesh["expert"],
        stages=mesh["pipeline"],
        replicas=mesh["data"],
        tokens=rows * config.data.seq_len / mesh["context"],
    )


def _local_params(c: ModelConfig, split: _Split) -> tuple[float, float]:
    """Parameters on one device: (of layers, of embedding and output)."""
    parts, shards = num_params(c), split.weights * split.tensor
    ends = (parts["embedding"] + parts["output"]) / shards
    layers = sum(n for name, n in parts.items() if name not in ("embedding", "output", "norms"))
    return (layers / shards + parts["norms"]) / split.stages, ends


def _memory(config: RunConfig, mesh: dict[str, int]) -> Memory:
    c, split = config.model, _split(config, mesh)
    layers, ends = _local_params(c, split)
    params = F32 * (layers + ends)
    state = STATE_COPIES[config.optim.name] * params
    if config.optim.name == "muon":  # embeddings and vectors go by AdamW: one more
        state += F32 * ends
    is_accumulated = config.train.num_micro_batches > 1
    item = 2 if c.compute_dtype == "bfloat16" else 4
    per_layer = stored_per_token(c, split.experts) / (split.tensor if c.remat != "full" else 1)
    stored = item * split.tokens * c.num_layers / split.stages * per_layer
    # one layer's gathered weights and their gradients, its recomputed values; the output's table,
    # its gradient and the embedding's, whole before they are scattered, and one on its way
    none = dataclasses.replace(c, remat="none")
    values = split.tokens * stored_per_token(none, split.experts) / split.tensor
    layer = layers * split.stages / c.num_layers * split.weights / split.experts
    table = c.vocab_size * c.embed_dim / split.tensor
    temporaries = item * (2 * layer + values) + (item + 3 * F32) * table
    return Memory(params, state, params * (2 if is_accumulated else 1), stored, temporaries)


def _expert_values(c: ModelConfig, sharing: int = 1) -> float:
    """Numbers per token inside of a layer with experts: its rows, and what they become.

    sharing: devices that share the experts; each has room for the rows of all (docs/moe.md)
    """
    if not c.num_experts:
        return 0.0
    return sharing * c.experts_per_token * (2.0 * c.embed_dim + 3.0 * c.expert_width)


def _work(config: RunConfig, mesh: dict[str, int], topology: Topology) -> Work:
    c, chip, T = config.model, topology.chip, config.data.seq_len
    micro, split = config.train.num_micro_batches, _split(config, mesh)
    per_device = config.data.batch_size * T / topology.num_devices
    model_flops = per_device * train_flops_per_token(c, T)
    again = recomputed_flops_per_token(c, T, is_sent=split.experts > 1)
    executed = model_flops + per_device * again
    item = 2 if c.compute_dtype == "bfloat16" else 4
    values = 8 * c.embed_dim + 6 * c.ffn_dim + 2 * _expert_values(c, split.experts)
    layers, ends = _local_params(c, split)
    gathered = micro * item * (layers * split.weights / split.experts + ends * split.weights)
    hbm = item * per_device * c.num_layers * values + 8 * F32 * (layers + ends) + 3 * gathered
    wire, far = _wire_bytes(config, split)
    compute_s, hbm_s = executed / chip.peak_flops, hbm / chip.hbm_bandwidth
    wire_s = wire / egress(topology)
    far_s = far / chip.slice_bandwidth if far else 0.0
    busy = 1 - config.mesh.schedule(split.stages).idle_frac
    return Work(
        model_flops=model_flops,
        executed_flops=executed,
        hbm_bytes=hbm,
        wire_bytes=wire + far,
        fastest_s=max(compute_s / busy, hbm_s, wire_s, far_s),
        slowest_s=compute_s / PRODUCT_SHARE / busy + hbm_s + wire_s + far_s,
    )


def egress(topology: Topology) -> float:
    """Bytes/s that a device sends over all its links."""
    if not topology.chip.is_tpu:
        return topology.chip.link_bandwidth
    total = sum(topology.axis_bandwidth(axis) for axis in range(len(topology.shape)))
    return total or topology.chip.link_bandwidth


def _wire_bytes(config: RunConfig, split: _Split) -> tuple[float, float]:
    """What one device sends: (within its slice, to other slices).

    Per micro-batch: weights gathered twice, gradients scattered once, and their shares summed over
    replicas and slices; per layer, activations summed over the model axis four times, tokens to
    their experts and back, forward and backward.
    """
    c, micro = config.model, config.train.num_micro_batches
    item = 2 if c.compute_dtype == "bfloat16" else 4
    ring = lambda n: (n - 1) / n
    layers, ends = _local_params(c, split)
    of_experts = num_params(c).get("experts", 0) / (split.weights * split.tensor * split.stages)
    dense = (layers - of_experts + ends) * split.weights * ring(split.weights)
    group = split.weights // split.experts
    gathered = dense + of_experts * group * ring(group)
    replicas, far = (
        2 * F32 * (layers + ends) * ring(n) for n in (split.replicas, config.mesh.slice)
    )
    tokens = item * split.tokens * micro / split.stages
    tensor = 8 * tokens * c.num_layers * c.embed_dim * ring(split.tensor)
    sent = c.num_sparse_layers * c.experts_per_token if c.num_experts else 0
    experts = 4 * tokens * sent * c.embed_dim * ring(split.experts)
    return 3 * micro * item * gathered + micro * replicas + tensor + experts, micro * far
