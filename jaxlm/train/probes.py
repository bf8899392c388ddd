# SPDX-License-Identifier: Apache-2.0
"""What a diagnosis needs to see inside an update: norms by part, attention logits, lost updates.

Measured at every `probe_every`-th update and skipped, on the device, at the others.  A part is a
layer (`layer_3`) or all layers' parameters of one kind (`attention`, `mlp`, `norms`), or one that
stands outside the layers (`embed`, `output`).

Legend: B batch  T positions  P parts  N probes  L layers
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.core.types import Batch, Params
from jaxlm.model.transformer import Model
from jaxlm.optim.groups import is_axes, own_dims

PROBES = "probes"  # the metric that holds all of them, as one array
NORMS = ("grad/norm_l2", "param/norm_l2", "update/ratio_rms")
LOST = ("param/bf16_frac", "update/below_bf16_frac")


@dataclasses.dataclass(frozen=True)
class Probe:
    """The probes of one model.

    num_rows: of the batch, for attention logits; one per device; 0: no attention logits
    """

    model: Model
    every: int
    num_rows: int

    @property
    def names(self) -> tuple[str, ...]:
        """(N,) registered names, in the order of the values."""
        norms = [f"{metric}@{part}" for metric in NORMS for part in self._parts()]
        layers = range(self.model.config.num_layers if self.num_rows else 0)
        return (*norms, *(f"attention/logit_max@layer_{i}" for i in layers), *LOST)

    def is_due(self, step: int | jax.Array) -> Any:
        """Whether the update that follows `step` earlier ones is measured."""
        return step % self.every == 0

    def __call__(
        self, step: jax.Array, grads: Any, updates: Any, params: Params, batch: Batch
    ) -> jax.Array:
        """(N,) f32, NaN where not due.  params: before the update."""

        def measure(grads: Any, updates: Any, params: Params, batch: Batch) -> jax.Array:
            grad_P, update_P, param_P = (self._norms(tree) for tree in (grads, updates, params))
            ratio_P = update_P / jnp.where(param_P > 0, param_P, jnp.inf)
            found = [grad_P, param_P, ratio_P]
            if self.num_rows:
                names = ("tokens", "positions", "segment_ids")
                few = [self._few_rows(batch[name]) for name in names]
                found.append(self.model.largest_attention_logits(params, *few))
            return jnp.concatenate([*found, self._lost(updates, params)])

        skip = lambda *_: jnp.full(len(self.names), jnp.nan, jnp.float32)
        return jax.lax.cond(self.is_due(step), measure, skip, grads, updates, params, batch)

    def _few_rows(self, x_BT: jax.Array) -> jax.Array:
        """The first row of every device: no row changes its place."""
        return x_BT.reshape(self.num_rows, -1, x_BT.shape[-1])[:, 0]

    def _parts(self) -> list[str]:
        kinds = {kind: None for _, kind, _ in self._leaves()}  # in order, each once
        return [f"layer_{i}" for i in range(self.model.config.num_layers)] + list(kinds)

    def _leaves(self) -> Iterator[tuple[int | None, str, tuple[str, ...]]]:
        """(first layer of the stack, kind, axes) of every parameter; None outside the layers."""
        first = {"dense_layers": 0, "layers": self.model.config.num_dense_layers}
        for path, axes in jax.tree_util.tree_leaves_with_path(self.model.axes(), is_leaf=is_axes):
            names = [key.key for key in path]
            is_layered = names[0] in first
            kind = names[2] if is_layered else names[0]
            kind = "norms" if kind.endswith("_norm") else kind
            place = int(names[1].removeprefix("block_")) if is_layered else 0
            yield first[names[0]] + place if is_layered else None, kind, axes

    def _norms(self, tree: Any) -> jax.Array:
        """(P,) of a tree like the parameters."""
        c = self.model.config
        period = len(c.layer_pattern)
        layers_L = jnp.zeros(c.num_layers)
        kinds: dict[str, jax.Array] = {}
        for leaf, (layer, kind, axes) in zip(jax.tree.leaves(tree), self._leaves(), strict=True):
            within = tuple(dim for dim, name in enumerate(axes) if name != "layers")  # all experts
            squares = jnp.sum(jnp.square(leaf), axis=within)
            if layer is not None:
                layers_L = layers_L.at[layer : layer + len(squares) * period : period].add(squares)
            kinds[kind] = kinds.get(kind, jnp.float32(0)) + jnp.sum(squares)
        return jnp.sqrt(jnp.concatenate([layers_L, jnp.stack(list(kinds.values()))]))

    def _lost(self, updates: Any, params: Params) -> jax.Array:
        """Shares of the matrices' entries that bf16 holds exactly, and whose update it would lose."""
        exact = below = jnp.float32(0)
        count = 0
        trees = zip(jax.tree.leaves(params), jax.tree.leaves(updates), self._leaves(), strict=True)
        for p, u, (_, _, axes) in trees:
            if len(own_dims(axes)) > 1:
                exact += jnp.sum(p == jax.lax.reduce_precision(p, 8, 7))
                below += jnp.sum(jnp.abs(u) < jnp.abs(p) * 2.0**-9)
                count += p.size
        return jnp.stack([exact, below]) / count
