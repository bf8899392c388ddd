# SPDX-License-Identifier: Apache-2.0
"""The MLP of a block, plain or gated.

    gelu, relu2:     y = act(x W_up) W_down                   relu2: arXiv:2109.08668
    swiglu, geglu:   y = (act(x W_gate) * (x W_up)) W_down    arXiv:2002.05202

Legend: B batch  T positions  D model width  F MLP width
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxlm.nn import init
from jaxlm.nn.linear import linear
from jaxlm.sharding.rules import constrain


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))).  Source: arXiv:1606.08415.

    Its gradient is written out once, behind a barrier: XLA on CPU otherwise computes it again
    inside each of the two matrix products that read it.
    """
    return nn.gelu(x)


def _gelu_grad(x: jax.Array, dy: jax.Array) -> tuple[jax.Array]:
    (dx,) = jax.vjp(nn.gelu, x)[1](dy)
    return (jax.lax.optimization_barrier(dx),)


gelu.defvjp(lambda x: (nn.gelu(x), x), _gelu_grad)


@jax.custom_vjp
def relu2(x: jax.Array) -> jax.Array:
    """max(0, x)^2.  Source: arXiv:2109.08668.

    Its gradient needs max(0, x) alone, where x and the places of the maximum would be stored too.
    """
    return jnp.square(nn.relu(x))


def _relu2_fwd(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    positive = nn.relu(x)
    return jnp.square(positive), positive


def _relu2_grad(positive: jax.Array, dy: jax.Array) -> tuple[jax.Array]:
    return (jax.lax.optimization_barrier(2 * positive * dy),)


relu2.defvjp(_relu2_fwd, _relu2_grad)

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": gelu,
    "geglu": gelu,
    "swiglu": nn.silu,
    "relu2": relu2,
}


class MLP(nn.Module):
    """(B, T, D) -> (B, T, D), in the input's dtype."""

    ffn_dim: int
    activation: str
    num_layers: int  # of the whole model, for the initial scale

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        D, F = x_BTD.shape[-1], self.ffn_dim
        act = ACTIVATIONS[self.activation]
        w_up_DF = init.param(self, "w_up", init.reads(D), (D, F), ("embed", "ffn"))
        w_down_FD = init.param(
            self, "w_down", init.writes(F, self.num_layers), (F, D), ("ffn", "embed")
        )
        hidden_BTF = checkpoint_name(linear(x_BTD, w_up_DF), "mlp_up")
        if self.activation in ("swiglu", "geglu"):
            w_gate_DF = init.param(self, "w_gate", init.reads(D), (D, F), ("embed", "ffn"))
            gate_BTF = checkpoint_name(linear(x_BTD, w_gate_DF), "mlp_gate")
            hidden_BTF = act(gate_BTF) * hidden_BTF
        else:
            hidden_BTF = act(hidden_BTF)
        hidden_BTF = constrain(hidden_BTF, ("batch", "seq", "ffn"))
        return linear(hidden_BTF, w_down_FD)
