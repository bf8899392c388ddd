# SPDX-License-Identifier: Apache-2.0
"""One layer, the layers of one turn of the pattern, and what of them the backward pass stores.

    x += attention(norm(x));  x += mlp(norm(x))        mlp: dense, or experts

Legend: B batch  T positions  D model width
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name

from jaxlm.model.config import LayerKind, ModelConfig
from jaxlm.nn.attention import Attention, KVCache, Where
from jaxlm.nn.experts import PRODUCT
from jaxlm.nn.mlp import MLP
from jaxlm.nn.moe import MoE
from jaxlm.nn.norm import RMSNorm
from jaxlm.nn.router import CHOSEN, Routing
from jaxlm.sharding.rules import constrain

# Logical axes of the residual stream between layers.
STREAM = ("batch", "residual_seq", "embed")

# What attention and MLP read: gathered, so that the weights need not be.
INNER = ("batch", "seq", "embed")
PRODUCTS = ("attention_qkv", "attention_kernel", "attention_out", "mlp_gate")  # names of values

# What the backward pass finds stored, by name; the rest is computed again.
_named = jax.checkpoint_policies.save_only_these_names
REMAT_POLICIES: dict[str, Callable[..., Any] | None] = {
    "none": None,  # everything stored: no wrapper at all
    "full": _named(CHOSEN),
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable, _named(PRODUCT, CHOSEN)
    ),
    "block_inputs": _named("attention_out", "mlp_out", CHOSEN),
    # the TPU kernel does not run twice; elsewhere as "full"
    "attention": _named("attention_kernel", CHOSEN),
    # nothing that costs a product, but for attention where it has no kernel
    "products": _named(*PRODUCTS, "mlp_up", CHOSEN),
    "products_but_up": _named(*PRODUCTS, CHOSEN),
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[CHOSEN],
        names_which_can_be_offloaded=["attention_out", "mlp_out"],  # as block_inputs, to the host
        offload_src="device",
        offload_dst="pinned_host",
    ),
}


class Block(nn.Module):
    """One pre-norm layer: attention, then MLP or experts, each added to the stream."""

    config: ModelConfig
    kind: LayerKind
    is_sparse: bool = False

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, where: Where, cache: KVCache | None
    ) -> tuple[jax.Array, KVCache | None, Routing | None]:
        c = self.config
        attended_BTD, cache = Attention(
            num_heads=c.num_heads,
            kv_heads=c.kv_heads,
            head_dim=c.head_width,
            num_layers=c.num_layers,
            window=c.window if self.kind == "local" else None,
            softcap=c.attention_softcap,
            has_sinks=c.attention_sinks,
            qk_norm_eps=c.norm_eps if c.qk_norm else None,
            impl=c.attention_impl,
            name="attention",
        )(constrain(RMSNorm(c.norm_eps, name="attention_norm")(x_BTD), INNER), where, cache)
        x_BTD = x_BTD + checkpoint_name(attended_BTD, "attention_out")
        x_BTD = constrain(x_BTD, STREAM)
        normed_BTD = constrain(RMSNorm(c.norm_eps, name="mlp_norm")(x_BTD), INNER)
        routing = None
        if self.is_sparse:
            y_BTD, routing = _experts(c)(normed_BTD, where.segment_ids_BT)
        else:
            y_BTD = MLP(c.ffn_dim, c.activation, c.num_layers, name="mlp")(normed_BTD)
        x_BTD = x_BTD + checkpoint_name(y_BTD, "mlp_out")
        return constrain(x_BTD, STREAM), cache, routing


def _experts(c: ModelConfig) -> MoE:
    return MoE(
        num_experts=c.num_experts,
        experts_per_token=c.experts_per_token,
        expert_dim=c.expert_width,
        num_shared_experts=c.num_shared_experts,
        activation=c.activation,
        num_layers=c.num_layers,
        score=c.router_score,
        is_normalized=c.router_normalized,
        scale=c.router_scale,
        has_bias=c.router_bias_rate > 0,
        impl=c.expert_impl,
        name="moe",
    )


class Period(nn.Module):
    """The layers of one turn of `layer_pattern`: what the scan over depth repeats."""

    config: ModelConfig
    is_sparse: bool

    @nn.compact
    def __call__(self, x_BTD, where, caches):
        policy = REMAT_POLICIES[self.config.remat]
        block_cls = Block
        if policy is not None:
            # only a loop keeps the compiler from finding the stored values in the recomputed ones
            prevent_cse = self.config.scan_unroll > 1
            block_cls = nn.remat(Block, policy=policy, prevent_cse=prevent_cse)
        new_caches, routings = [], []
        for i, kind in enumerate(self.config.layer_pattern):
            block = block_cls(self.config, kind, self.is_sparse, name=f"block_{i}")
            x_BTD, cache, routing = block(x_BTD, where, None if caches is None else caches[i])
            new_caches.append(cache)
            routings.append(routing)
        return x_BTD, (None if caches is None else tuple(new_caches), tuple(routings))
