# SPDX-License-Identifier: Apache-2.0
"""The MLP of a block, plain or gated.

    gelu, relu2:     y = act(x W_up) W_down                   relu2: arXiv:2109.08668
    swiglu, geglu:   y = (act(x W_gate) * (x W_up)) W_down    arXiv:2002.05202

Legend: B batch  T positions  D model width  F MLP width
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlm.nn import init

ACTIVATIONS = {
    "gelu": nn.gelu,  # the tanh form
    "geglu": nn.gelu,
    "swiglu": nn.silu,
    "relu2": lambda x: jnp.square(nn.relu(x)),
}


class MLP(nn.Module):
    """(B, T, D) -> (B, T, D), in the input's dtype."""

    ffn_dim: int
    activation: str
    num_layers: int  # of the whole model, for the initial scale

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        D, F, dtype = x_BTD.shape[-1], self.ffn_dim, x_BTD.dtype
        act = ACTIVATIONS[self.activation]
        w_up_DF = init.param(self, "w_up", init.reads(D), (D, F), ("embed", "ffn"))
        w_down_FD = init.param(
            self, "w_down", init.writes(F, self.num_layers), (F, D), ("ffn", "embed")
        )
        hidden_BTF = jnp.einsum("BTD,DF->BTF", x_BTD, w_up_DF.astype(dtype))
        if self.activation in ("swiglu", "geglu"):
            w_gate_DF = init.param(self, "w_gate", init.reads(D), (D, F), ("embed", "ffn"))
            gate_BTF = jnp.einsum("BTD,DF->BTF", x_BTD, w_gate_DF.astype(dtype))
            hidden_BTF = act(gate_BTF) * hidden_BTF
        else:
            hidden_BTF = act(hidden_BTF)
        hidden_BTF = nn.with_logical_constraint(hidden_BTF, ("batch", "seq", "ffn"))
        return jnp.einsum("BTF,FD->BTD", hidden_BTF, w_down_FD.astype(dtype))
