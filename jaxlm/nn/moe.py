# SPDX-License-Identifier: Apache-2.0
"""The mixture of experts that stands in the place of a block's MLP.

    y = sum over the chosen k:  weight_k * expert_k(x)   +  shared(x)

Experts and the shared ones are MLPs (nn/mlp.py); the router is nn/router.py.  No token is dropped.

Legend: B batch  T positions  D model width  E experts  F expert width
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlm.nn import init
from jaxlm.nn.experts import READ, WRITE, ExpertWeights, Rules, mixture
from jaxlm.nn.mlp import MLP
from jaxlm.nn.router import Routing, Score, routing_of
from pallas_kernels.grouped_matmul.api import Impl


class MoE(nn.Module):
    """(B, T, D) -> (B, T, D) in the input's dtype, and what the router did."""

    num_experts: int
    experts_per_token: int
    expert_dim: int
    num_shared_experts: int
    activation: str
    num_layers: int  # of the whole model, for the initial scale
    score: Score
    is_normalized: bool
    scale: float
    has_bias: bool
    impl: Impl

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, segment_ids_BT: jax.Array | None
    ) -> tuple[jax.Array, Routing]:
        """segment_ids_BT: 0 marks padding, which no expert computes; None: there is none."""
        E, D, F = self.num_experts, x_BTD.shape[-1], self.expert_dim
        router_DE = init.param(self, "router", init.reads(D), (D, E), ("embed", "router"))
        bias_E = init.param(self, "bias", init.zeros, (E,), ("balance",)) if self.has_bias else None
        is_gated = self.activation in ("swiglu", "geglu")
        weights = ExpertWeights(
            gate_EDF=init.param(self, "w_gate", init.reads(D), (E, D, F), READ)
            if is_gated
            else None,
            up_EDF=init.param(self, "w_up", init.reads(D), (E, D, F), READ),
            down_EFD=init.param(self, "w_down", init.writes(F, self.num_layers), (E, F, D), WRITE),
        )
        # exact: a logit rounded to bf16 sends tokens elsewhere
        logits_BTE = jnp.einsum(
            "BTD,DE->BTE", x_BTD.astype(jnp.float32), router_DE, precision=jax.lax.Precision.HIGHEST
        )
        counted_BT = None if segment_ids_BT is None else segment_ids_BT > 0
        rules = Rules(
            self.experts_per_token,
            self.score,
            self.is_normalized,
            self.scale,
            self.activation,
            self.impl,
        )
        y_BTD, sums = mixture(x_BTD, logits_BTE, bias_E, counted_BT, weights, rules)
        if self.num_shared_experts:
            width = self.num_shared_experts * F
            y_BTD = y_BTD + MLP(width, self.activation, self.num_layers, name="shared")(x_BTD)
        return y_BTD, routing_of(sums, self.experts_per_token)
