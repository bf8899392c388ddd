# SPDX-License-Identifier: Apache-2.0
"""Parameters, FLOPs and bytes of a model by arithmetic.  Standard library only.

A product of (m, k) and (k, n) is 2mkn FLOPs.  The backward pass does two such products for each
one forward.  Norms, softmax and other elementwise work are left out, as is what remat does again:
these are model FLOPs, the numerator of MFU (arXiv:2204.02311 appendix B).

Legend: D model width  F MLP width  V vocabulary  N query heads  K kv heads  H head width  T positions
"""

from jaxlm.model.config import ModelConfig


def num_params(c: ModelConfig) -> dict[str, int]:
    """Parameters by group; the sum is the size of the tree that Model.init gives."""
    D, F, H = c.embed_dim, c.ffn_dim, c.head_width
    norms = (2 * D + (2 * H if c.qk_norm else 0)) * c.num_layers + D
    sinks = c.num_heads * c.num_layers if c.attention_sinks else 0
    return {
        "embedding": c.vocab_size * D,
        "output": 0 if c.tied_embeddings else c.vocab_size * D,
        "attention": c.num_layers * 2 * D * H * (c.num_heads + c.kv_heads) + sinks,
        "mlp": c.num_layers * (3 if c.is_gated else 2) * D * F,
        "norms": norms,
    }


def mean_keys(seq_len: int, window: int | None) -> float:
    """Keys that a query of a causal row sees, averaged over the row's positions."""
    w = seq_len if window is None else min(window, seq_len)
    return (w * (w + 1) / 2 + (seq_len - w) * w) / seq_len


def forward_flops_per_token(c: ModelConfig, seq_len: int) -> dict[str, float]:
    """FLOPs of the matrix products of one forward pass, by group, per position of a whole row."""
    D, H = c.embed_dim, c.head_width
    keys = 0.0
    for i in range(c.num_layers):
        kind = c.layer_pattern[i % len(c.layer_pattern)]
        keys += mean_keys(seq_len, c.window if kind == "local" else None)
    return {
        "projections": 2.0 * c.num_layers * 2 * D * H * (c.num_heads + c.kv_heads),
        "scores and values": 2.0 * keys * 2 * c.num_heads * H,
        "mlp": 2.0 * c.num_layers * (3 if c.is_gated else 2) * D * c.ffn_dim,
        "logits": 2.0 * D * c.vocab_size,
    }


def train_flops_per_token(c: ModelConfig, seq_len: int) -> float:
    """Forward and backward: three times the forward products."""
    return 3.0 * sum(forward_flops_per_token(c, seq_len).values())
