# SPDX-License-Identifier: Apache-2.0
"""Parameters, FLOPs and bytes of a model by arithmetic.  Standard library only.

A product of (m, k) and (k, n) is 2mkn FLOPs.  The backward pass does two such products for each
one forward.  Norms, softmax and other elementwise work are left out, as is what remat does again:
these are model FLOPs, the numerator of MFU (arXiv:2204.02311 appendix B).

Legend: D model width  H head width  L layers with experts
"""

from jaxlm.model.config import ModelConfig


def num_params(c: ModelConfig) -> dict[str, int]:
    """Parameters by group; the sum is the size of the tree that Model.init gives."""
    D, H = c.embed_dim, c.head_width
    norms = (2 * D + (2 * H if c.qk_norm else 0)) * c.num_layers + D
    sinks = c.num_heads * c.num_layers if c.attention_sinks else 0
    groups = {
        "embedding": c.vocab_size * D,
        "output": 0 if c.tied_embeddings else c.vocab_size * D,
        "attention": c.num_layers * 2 * D * H * (c.num_heads + c.kv_heads) + sinks,
        "mlp": (c.num_layers - c.num_sparse_layers) * _mlp_weights(c, c.ffn_dim),
        "norms": norms,
    }
    if L := c.num_sparse_layers:
        expert, bias = _mlp_weights(c, c.expert_width), 1 if c.router_bias_rate else 0
        groups["experts"] = L * c.num_experts * expert
        groups["shared experts"] = L * c.num_shared_experts * expert
        groups["routers"] = L * c.num_experts * (D + bias)
    return groups


def num_active_params(c: ModelConfig) -> int:
    """Parameters that one token meets: all, but of the experts those that it goes to."""
    idle = c.num_experts - c.experts_per_token if c.num_experts else 0
    idle_weights = c.num_sparse_layers * idle * _mlp_weights(c, c.expert_width)
    return sum(num_params(c).values()) - idle_weights


def _mlp_weights(c: ModelConfig, width: int) -> int:
    return (3 if c.is_gated else 2) * c.embed_dim * width


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
    flops = {
        "projections": 2.0 * c.num_layers * 2 * D * H * (c.num_heads + c.kv_heads),
        "scores and values": 2.0 * keys * 2 * c.num_heads * H,
        "mlp": 2.0 * (c.num_layers - c.num_sparse_layers) * _mlp_weights(c, c.ffn_dim),
        "logits": 2.0 * D * c.vocab_size,
    }
    if L := c.num_sparse_layers:
        met = c.experts_per_token + c.num_shared_experts
        flops["experts"] = 2.0 * L * met * _mlp_weights(c, c.expert_width)
        flops["routers"] = 2.0 * L * D * c.num_experts
    return flops


def train_flops_per_token(c: ModelConfig, seq_len: int) -> float:
    """Forward and backward: three times the forward products."""
    return 3.0 * sum(forward_flops_per_token(c, seq_len).values())
