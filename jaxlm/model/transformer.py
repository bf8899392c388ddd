# SPDX-License-Identifier: Apache-2.0
"""The decoder: embed, a scan over blocks, a final norm; as pure functions `init` and `apply`.

    x = embed(tokens)
    per layer:  x += attention(norm(x));  x += mlp(norm(x))
    hidden = norm(x);  logits = cap * tanh(hidden E^T / cap)

Legend: B batch  T positions  R = B*T  S cache slots  D model width  K kv heads  H head width
        V vocabulary  L layers
"""

import dataclasses
import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxlm.core.types import Params
from jaxlm.model.config import LayerKind, ModelConfig
from jaxlm.nn.attention import Attention, KVCache, Where
from jaxlm.nn.embed import Embed, Output
from jaxlm.nn.mlp import MLP
from jaxlm.nn.norm import RMSNorm
from jaxlm.nn.rope import rope_frequencies, rope_tables

STREAM = ("batch", "seq", "embed")  # logical axes of the residual stream

PRODUCTS = ("attention_qkv", "attention_kernel", "attention_out", "mlp_gate")  # names of values

# What the backward pass finds stored, by name; the rest is computed again.
REMAT_POLICIES: dict[str, Callable[..., Any] | None] = {
    "none": None,  # everything stored: no wrapper at all
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "block_inputs": jax.checkpoint_policies.save_only_these_names("attention_out", "mlp_out"),
    # the TPU kernel does not run twice; elsewhere as "full"
    "attention": jax.checkpoint_policies.save_only_these_names("attention_kernel"),
    # nothing that costs a product, but for attention where it has no kernel
    "products": jax.checkpoint_policies.save_only_these_names(*PRODUCTS, "mlp_up"),
    "products_but_up": jax.checkpoint_policies.save_only_these_names(*PRODUCTS),
}


class Block(nn.Module):
    """One pre-norm layer: attention, then MLP, each added to the stream."""

    config: ModelConfig
    kind: LayerKind

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, where: Where, cache: KVCache | None
    ) -> tuple[jax.Array, KVCache | None]:
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
        )(RMSNorm(c.norm_eps, name="attention_norm")(x_BTD), where, cache)
        x_BTD = x_BTD + checkpoint_name(attended_BTD, "attention_out")
        x_BTD = nn.with_logical_constraint(x_BTD, STREAM)
        mlp = MLP(c.ffn_dim, c.activation, c.num_layers, name="mlp")
        y_BTD = mlp(RMSNorm(c.norm_eps, name="mlp_norm")(x_BTD))
        x_BTD = x_BTD + checkpoint_name(y_BTD, "mlp_out")
        return nn.with_logical_constraint(x_BTD, STREAM), cache


class Period(nn.Module):
    """The layers of one turn of `layer_pattern`: what the scan over depth repeats."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BTD, where, caches):
        policy = REMAT_POLICIES[self.config.remat]
        block_cls = Block if policy is None else nn.remat(Block, policy=policy, prevent_cse=False)
        new_caches = []
        for i, kind in enumerate(self.config.layer_pattern):
            block = block_cls(self.config, kind, name=f"block_{i}")
            x_BTD, cache = block(x_BTD, where, None if caches is None else caches[i])
            new_caches.append(cache)
        return x_BTD, None if caches is None else tuple(new_caches)


class Transformer(nn.Module):
    """Token ids to final hidden states, and hidden states to logits."""

    config: ModelConfig

    def setup(self) -> None:
        c = self.config
        self.embed = Embed(c.vocab_size, c.embed_dim, c.tied_embeddings, jnp.dtype(c.compute_dtype))
        self.layers = nn.scan(
            Period,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, 0),
            length=c.num_layers // len(c.layer_pattern),
            metadata_params={nn.PARTITION_NAME: "layers"},
            check_constancy_invariants=False,  # costs a second trace of the layers
        )(c)
        self.final_norm = RMSNorm(c.norm_eps)
        self.output = None if c.tied_embeddings else Output(c.vocab_size, c.embed_dim)

    def hidden(
        self,
        tokens_BT: jax.Array,
        positions_BT: jax.Array,
        segment_ids_BT: jax.Array | None = None,
        caches: tuple[KVCache, ...] | None = None,
        offset_B: jax.Array | None = None,
    ) -> tuple[jax.Array, tuple[KVCache, ...] | None]:
        c = self.config
        frequencies = rope_frequencies(
            c.head_width, c.rope_theta, c.rope_scaling, c.rope_factor, c.rope_original_len
        )
        where = Where(rope_tables(positions_BT, *frequencies), segment_ids_BT, offset_B)
        x_BTD = nn.with_logical_constraint(self.embed(tokens_BT), STREAM)
        x_BTD, caches = self.layers(x_BTD, where, caches)
        return self.final_norm(x_BTD), caches

    def output_matrix(self) -> jax.Array:
        return self.embed.table_VD if self.output is None else self.output()

    def __call__(self, tokens_BT, positions_BT):
        """Touches every parameter once: what `init` traces."""
        return self.hidden(tokens_BT, positions_BT)[0], self.output_matrix()


@dataclasses.dataclass(frozen=True)
class Model:
    """The transformer as pure functions of its parameters.

    init(rng) -> params, a nested dict of f32 arrays
    axes() -> the same tree with a tuple of logical axis names for each parameter
    """

    config: ModelConfig

    @functools.cached_property
    def _module(self) -> Transformer:
        return Transformer(self.config)

    def _call(self, method: str, params: Params, *inputs: Any) -> Any:
        return self._module.apply({"params": params}, *inputs, method=method)

    def _boxed_init(self, rng: jax.Array) -> Params:
        tokens_BT = jnp.zeros((1, 2), jnp.int32)
        # shapes are the same by any implementation, and a kernel may not run where this is traced
        module = Transformer(dataclasses.replace(self.config, attention_impl="reference"))
        return module.init(rng, tokens_BT, tokens_BT)["params"]

    def init(self, rng: jax.Array) -> Params:
        return nn.unbox(self._boxed_init(rng))

    def axes(self) -> Any:
        return _logical_axes(self)

    def apply(
        self,
        params: Params,
        tokens_BT: jax.Array,
        positions_BT: jax.Array | None = None,
        segment_ids_BT: jax.Array | None = None,
    ) -> jax.Array:
        """Final hidden states (B, T, D), in the compute dtype.

        positions_BT:    None counts from 0 in every row
        segment_ids_BT:  packed rows: a position sees only its own segment; None: one segment
        """
        if positions_BT is None:
            positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
        inputs = (tokens_BT, positions_BT, segment_ids_BT)
        return self._call("hidden", params, *inputs)[0]

    def output_matrix(self, params: Params) -> jax.Array:
        """(V, D), f32: the embedding's table when tied."""
        return self._call("output_matrix", params)

    def logits(self, params: Params, hidden_BTD: jax.Array) -> jax.Array:
        """f32 logits (B, T, V) of hidden states, soft-capped when the config says so."""
        B, T, D = hidden_BTD.shape
        table_VD = self.output_matrix(params).astype(hidden_BTD.dtype)
        product = partial(jnp.einsum, preferred_element_type=jnp.float32)
        logits_BTV = product("RD,VD->RV", hidden_BTD.reshape(B * T, D), table_VD).reshape(B, T, -1)
        cap = self.config.logit_softcap
        return logits_BTV if cap is None else cap * jnp.tanh(logits_BTV / cap)

    def init_cache(self, batch: int, num_slots: int) -> tuple[KVCache, ...]:
        """Empty cache: per layer of the pattern, keys and values (L / pattern, B, S, K, H)."""
        c = self.config
        period = len(c.layer_pattern)
        shape = (c.num_layers // period, batch, num_slots, c.kv_heads, c.head_width)
        zeros = partial(jnp.zeros, shape, c.compute_dtype)
        return tuple(KVCache(zeros(), zeros()) for _ in range(period))

    def apply_cached(
        self, params: Params, tokens_BT: jax.Array, caches: tuple[KVCache, ...], offset_B: jax.Array
    ) -> tuple[jax.Array, tuple[KVCache, ...]]:
        """Hidden states of tokens that continue each row at position offset_B, and the new cache."""
        positions_BT = offset_B[:, None] + jnp.arange(tokens_BT.shape[1])[None]
        inputs = (tokens_BT, positions_BT, None, caches, offset_B)
        return self._call("hidden", params, *inputs)


@functools.cache  # tracing the layers takes a quarter of a second, and several parts ask
def _logical_axes(model: Model) -> Any:
    specs = nn.get_partition_spec(jax.eval_shape(model._boxed_init, jax.random.key(0)))
    return jax.tree.map(tuple, specs, is_leaf=lambda s: isinstance(s, jax.P))
