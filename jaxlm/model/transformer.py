# SPDX-License-Identifier: Apache-2.0
"""The decoder: embed, a scan over blocks, a final norm; as pure functions `init` and `apply`.

    x = embed(tokens);  x = layer(x), num_layers times (model/block.py)
    hidden = norm(x);  logits = cap * tanh(hidden E^T / cap)

Legend: B batch  T positions  R = B*T  S cache slots  D model width  K kv heads  H head width
        V vocabulary  L layers
"""

import dataclasses
import functools
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlm.core.types import Params
from jaxlm.model import pipeline
from jaxlm.model.block import Period
from jaxlm.model.config import ModelConfig
from jaxlm.nn.attention import KVCache, Where
from jaxlm.nn.context import from_zigzag, to_zigzag
from jaxlm.nn.embed import Embed, Output
from jaxlm.nn.norm import RMSNorm
from jaxlm.nn.rope import rope_frequencies, rope_tables
from jaxlm.nn.router import Routing
from jaxlm.sharding.config import MeshConfig
from jaxlm.sharding.rules import BATCH, constrain, num_parts

ENDS = ("rows", "residual_seq", "embed")  # logical axes of the stream before and after the layers


class Transformer(nn.Module):
    """Token ids to final hidden states, and hidden states to logits."""

    config: ModelConfig
    mesh: MeshConfig

    def setup(self) -> None:
        c = self.config
        self.embed = Embed(c.vocab_size, c.embed_dim, c.tied_embeddings, jnp.dtype(c.compute_dtype))
        if c.num_dense_layers:
            self.dense_layers = _scanned(c, c.num_dense_layers, is_sparse=False)
        rest = c.num_layers - c.num_dense_layers
        self.layers = _scanned(c, rest, is_sparse=c.num_experts > 0)
        self.final_norm = RMSNorm(c.norm_eps)
        self.output = None if c.tied_embeddings else Output(c.vocab_size, c.embed_dim)

    def hidden(
        self,
        tokens_BT: jax.Array,
        positions_BT: jax.Array,
        segment_ids_BT: jax.Array | None = None,
        caches: tuple[KVCache, ...] | None = None,
        offset_B: jax.Array | None = None,
    ) -> tuple[jax.Array, tuple[KVCache, ...] | None, Routing | None]:
        c = self.config
        frequencies = rope_frequencies(
            c.head_width, c.rope_theta, c.rope_scaling, c.rope_factor, c.rope_original_len
        )
        if caches is None:
            tokens_BT, positions_BT = to_zigzag(tokens_BT, positions_BT)
            if segment_ids_BT is not None:
                (segment_ids_BT,) = to_zigzag(segment_ids_BT)
        where = Where(rope_tables(positions_BT, *frequencies), segment_ids_BT, offset_B)
        x_BTD = constrain(self.embed(tokens_BT), ENDS)
        is_decoding, first = caches is not None, c.num_dense_layers // len(c.layer_pattern)
        part = lambda periods: jax.tree.map(lambda slots: slots[periods], caches)
        dense = None
        if first:
            x_BTD, (dense, _) = self.dense_layers(x_BTD, where, part(slice(first)))
        schedule = self.mesh.schedule(num_parts("pipeline"))
        if schedule.stages > 1 and not is_decoding and not self.is_initializing():
            params = self.variables["params"]["layers"]
            x_BTD, (_, routings) = pipeline.run(self._stage, params, x_BTD, where, schedule)
        else:
            x_BTD, (caches, routings) = self.layers(x_BTD, where, part(slice(first, None)))
            if first:
                caches = jax.tree.map(lambda *parts: jnp.concatenate(parts), dense, caches)
        x_BTD = self.final_norm(constrain(x_BTD, ENDS))
        return x_BTD if is_decoding else from_zigzag(x_BTD), caches, _in_order(routings)

    def _stage(self, params: Params, x_BTD: jax.Array, where: Where) -> tuple[jax.Array, Any]:
        """Several periods in a row, as `layers` does with all."""
        period = Period(self.config, self.config.num_experts > 0, parent=None)
        apply = lambda x_BTD, of_one: period.apply({"params": of_one}, x_BTD, where, None)
        return jax.lax.scan(apply, x_BTD, params)

    def output_matrix(self) -> jax.Array:
        return self.embed.table_VD if self.output is None else self.output()

    def __call__(self, tokens_BT, positions_BT):
        """Touches every parameter once: what `init` traces."""
        return self.hidden(tokens_BT, positions_BT)[0], self.output_matrix()


def _scanned(config: ModelConfig, num_layers: int, is_sparse: bool) -> nn.Module:
    """A stack of layers of one kind, as a scan over the periods of the pattern."""
    return nn.scan(
        Period,
        variable_axes={"params": 0, "probes": 0},
        split_rngs={"params": True},
        in_axes=(nn.broadcast, 0),
        length=num_layers // len(config.layer_pattern),
        unroll=config.scan_unroll,
        metadata_params={nn.PARTITION_NAME: "layers"},
        check_constancy_invariants=False,  # costs a second trace of the layers
    )(config, is_sparse)


def _in_order(routings: tuple[Routing | None, ...]) -> Routing | None:
    """What every layer's router did, (L, ...), from what the scan stacked by place in the pattern."""
    join = lambda *parts: jnp.stack(parts, axis=1).reshape(-1, *parts[0].shape[1:])
    return None if routings[0] is None else jax.tree.map(join, *routings)


@dataclasses.dataclass(frozen=True)
class Model:
    """The transformer as pure functions of its parameters.

    init(rng) -> params, a nested dict of f32 arrays
    axes() -> the same tree with a tuple of logical axis names for each parameter
    """

    config: ModelConfig
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)  # how stages are scheduled

    @functools.cached_property
    def _module(self) -> Transformer:
        return Transformer(self.config, self.mesh)

    def _call(self, method: str, params: Params, *inputs: Any) -> Any:
        return self._module.apply({"params": params}, *inputs, method=method)

    def _boxed_init(self, rng: jax.Array) -> Params:
        # as small as the mesh around the trace can split
        shape = num_parts(*BATCH, "pipeline"), 2 * num_parts("context", "model")
        tokens_BT = jnp.zeros(shape, jnp.int32)
        # shapes are the same by any implementation, and a kernel may not run where this is traced
        plain = dataclasses.replace(
            self.config, attention_impl="reference", expert_impl="reference", scan_unroll=1
        )
        module = Transformer(plain, self.mesh)
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
        return self.apply_routed(params, tokens_BT, positions_BT, segment_ids_BT)[0]

    def apply_routed(
        self,
        params: Params,
        tokens_BT: jax.Array,
        positions_BT: jax.Array | None = None,
        segment_ids_BT: jax.Array | None = None,
    ) -> tuple[jax.Array, Routing | None]:
        """As `apply`, with what the router of every layer with experts did, (L, ...)."""
        if positions_BT is None:
            positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
        hidden_BTD, _, routing = self._call(
            "hidden", params, tokens_BT, positions_BT, segment_ids_BT
        )
        return hidden_BTD, routing

    def largest_attention_logits(
        self,
        params: Params,
        tokens_BT: jax.Array,
        positions_BT: jax.Array,
        segment_ids_BT: jax.Array,
    ) -> jax.Array:
        """(L,) f32: the largest logit that sampled queries of these rows see, by layer.

        Not for a mesh with pipeline stages or a split sequence: nothing is in one place there.
        """
        inputs = (tokens_BT, positions_BT, segment_ids_BT)
        apply = partial(self._module.apply, {"params": params}, method="hidden")
        _, found = apply(*inputs, mutable=["probes"])
        names = [f"block_{i}" for i in range(len(self.config.layer_pattern))]
        stacks = [found["probes"][s] for s in ("dense_layers", "layers") if s in found["probes"]]
        by_place = lambda stack: [stack[name]["attention"]["logit_max"][0] for name in names]
        return jnp.concatenate([jnp.stack(by_place(s), axis=1).ravel() for s in stacks])

    def output_matrix(self, params: Params) -> jax.Array:
        """(V, D), f32: the embedding's table when tied."""
        return self._call("output_matrix", params)

    def logits(self, params: Params, hidden_BTD: jax.Array) -> jax.Array:
        """f32 logits (B, T, V) of hidden states, soft-capped when the config says so."""
        table_VD = self.output_matrix(params).astype(hidden_BTD.dtype)
        product = partial(jnp.einsum, preferred_element_type=jnp.float32)
        logits_BTV = product("BTD,VD->BTV", hidden_BTD, table_VD)
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
        return self._call("hidden", params, *inputs)[:2]


@functools.cache  # tracing the layers takes a quarter of a second, and several parts ask
def _logical_axes(model: Model) -> Any:
    specs = nn.get_partition_spec(jax.eval_shape(model._boxed_init, jax.random.key(0)))
    return jax.tree.map(tuple, specs, is_leaf=lambda s: isinstance(s, jax.P))
