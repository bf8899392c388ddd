# SPDX-License-Identifier: Apache-2.0
"""The first answer, by arithmetic alone: memory, work and a range of time, in milliseconds.

What it cannot know (what the compiler fuses, copies, prefetches and overlaps) the compiled answer
does.  Standard library only.

Legend: D model width  F MLP width  N query heads  K kv heads  H head width  V vocabulary  P parameters
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


def stored_per_token(c: ModelConfig) -> float:
    """Numbers that one layer stores for the backward pass, by remat policy."""
    D, F, H = c.embed_dim, c.ffn_dim, c.head_width
    heads, kv = c.num_heads * H, c.kv_heads * H
    wide = 2 if c.is_gated else 1
    products = heads + 2 * kv + D + wide * F  # nothing needs what the last one, down, gives
    norm_inputs = heads + kv if c.qk_norm else 0
    return {
        "full": D,
        "block_inputs": 3 * D,
        "attention": D + 2 * heads + 2 * kv,
        "products": 2 * D + 2 * heads + 2 * kv + norm_inputs + wide * F,
        "products_but_up": 2 * D + 2 * heads + 2 * kv + norm_inputs + (wide - 1) * F,
        "dots": D + products,
        "none": D + products + 3 * D + 2 * heads + kv + (wide + 1) * F,
    }.get(c.remat, D + products)


def recomputed_flops_per_token(c: ModelConfig, seq_len: int) -> float:
    """What the backward pass computes again, by remat policy."""
    forward = forward_flops_per_token(c, seq_len)
    layers = sum(flops for name, flops in forward.items() if name != "logits")
    scores = forward["scores and values"]
    return {
        "none": 0.0,
        "dots": scores,
        "attention": layers - scores,
        "products": 0.0,
        "products_but_up": forward["mlp"] / (3 if c.is_gated else 2),
    }.get(c.remat, layers)


def _memory(config: RunConfig, mesh: dict[str, int]) -> Memory:
    c, parts = config.model, num_params(config.model)
    shards = mesh["fsdp"] * mesh["model"]
    norms = parts["norms"]
    params = F32 * ((sum(parts.values()) - norms) / shards + norms)
    copies = STATE_COPIES[config.optim.name]
    state = copies * params
    if config.optim.name == "muon":  # embeddings and vectors go by AdamW: one more
        state += F32 * ((parts["embedding"] + parts["output"]) / shards + norms)
    is_accumulated = config.train.num_micro_batches > 1
    tokens = _local_tokens(config, mesh)
    item = 2 if c.compute_dtype == "bfloat16" else 4
    split = mesh["model"]
    stored = (
        item * tokens * c.num_layers * stored_per_token(c) / (split if c.remat != "full" else 1)
    )
    # one layer's gathered weights and their gradients, its recomputed values, the loss's table
    layer = (parts["attention"] + parts["mlp"]) / c.num_layers / split
    none = dataclasses.replace(c, remat="none")
    table = c.vocab_size * c.embed_dim / split
    working = item * (2 * layer + tokens * stored_per_token(none) / split)
    temporaries = max(working, (item + F32) * table)
    return Memory(params, state, params * (2 if is_accumulated else 1), stored, temporaries)


def _local_tokens(config: RunConfig, mesh: dict[str, int]) -> float:
    """Of one micro-batch, on one device."""
    rows = config.data.batch_size / config.train.num_micro_batches / (mesh["data"] * mesh["fsdp"])
    return rows * config.data.seq_len


def _work(config: RunConfig, mesh: dict[str, int], topology: Topology) -> Work:
    c, chip, T = config.model, topology.chip, config.data.seq_len
    micro = config.train.num_micro_batches
    tokens = _local_tokens(config, mesh) * micro  # per group of the model axis
    model_flops = tokens * train_flops_per_token(c, T) / mesh["model"]
    executed = model_flops + tokens * recomputed_flops_per_token(c, T) / mesh["model"]
    params = float(sum(num_params(c).values()))
    item = 2 if c.compute_dtype == "bfloat16" else 4
    moved = item * tokens * c.num_layers * (8 * c.embed_dim + 6 * c.ffn_dim) / mesh["model"]
    update = F32 * 8 * params / (mesh["fsdp"] * mesh["model"])
    hbm = moved + update + 3 * micro * item * params / mesh["model"]
    wire = _wire_bytes(config, mesh, params, item, tokens)
    compute_s, hbm_s = executed / chip.peak_flops, hbm / chip.hbm_bandwidth
    wire_s = wire / egress(topology)
    return Work(
        model_flops=model_flops,
        executed_flops=executed,
        hbm_bytes=hbm,
        wire_bytes=wire,
        fastest_s=max(compute_s, hbm_s, wire_s),
        slowest_s=compute_s / PRODUCT_SHARE + hbm_s + wire_s,
    )


def egress(topology: Topology) -> float:
    """Bytes/s that a device sends over all its links."""
    if not topology.chip.is_tpu:
        return topology.chip.link_bandwidth
    total = sum(topology.axis_bandwidth(axis) for axis in range(len(topology.shape)))
    return total or topology.chip.link_bandwidth


def _wire_bytes(
    config: RunConfig, mesh: dict[str, int], params: float, item: int, tokens: float
) -> float:
    """Weights gathered twice and gradients scattered once per micro-batch; gradients summed over
    replicas; activations summed over the model axis, four times a layer."""
    c, micro = config.model, config.train.num_micro_batches
    ring = lambda n: (n - 1) / n
    fsdp = 3 * micro * item * params / mesh["model"] * ring(mesh["fsdp"])
    data = micro * 2 * F32 * params / (mesh["fsdp"] * mesh["model"]) * ring(mesh["data"])
    tensor = 8 * item * tokens * c.num_layers * c.embed_dim * ring(mesh["model"])
    return fsdp + data + tensor
