# SPDX-License-Identifier: Apache-2.0
"""The architecture, as plain numbers.  Standard library only."""

import dataclasses
from typing import Literal

from jaxlm.core.checks import require

Activation = Literal["swiglu", "geglu", "relu2", "gelu"]
LayerKind = Literal["full", "local"]
RematPolicy = Literal[
    "none", "full", "dots", "block_inputs", "attention", "products", "products_but_up", "offload"
]
Impl = Literal["auto", "reference", "xla", "pallas"]
RopeScaling = Literal["none", "linear", "ntk", "yarn", "llama3"]

ROUTER_LOSSES = ("router_balance_loss", "router_z_loss")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A decoder-only transformer: pre-norm blocks of attention and MLP, RMSNorm, RoPE."""

    vocab_size: int  # rows of the embedding; at least the tokenizer's vocabulary
    num_layers: int
    embed_dim: int
    num_heads: int
    ffn_dim: int  # width inside the MLP; gated activations have two matrices of this width
    num_kv_heads: int | None = None  # None: one per query head; 1: multi-query
    head_dim: int | None = None  # None: embed_dim / num_heads
    activation: Activation = "swiglu"
    norm_eps: float = 1e-6
    qk_norm: bool = False  # RMSNorm of every query and key head, arXiv:2010.04245
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling = "none"
    rope_factor: float = 1.0  # how many times longer than rope_original_len the context becomes
    rope_original_len: int = 8192  # context length that the unscaled frequencies were trained at
    layer_pattern: tuple[LayerKind, ...] = ("full",)  # repeated over the depth
    window: int | None = None  # keys seen by a "local" layer, the query's own included
    attention_softcap: float | None = None  # cap * tanh(scores / cap), arXiv:2408.00118
    attention_sinks: bool = False  # a learned logit per head that attends to nothing
    logit_softcap: float | None = None
    tied_embeddings: bool = True
    compute_dtype: Literal["float32", "bfloat16"] = "float32"  # parameters are always float32
    remat: RematPolicy = "none"
    scan_unroll: int = 1  # turns of the scan over depth written out: fewer copies, more to compile
    attention_impl: Impl = "auto"
    loss_impl: Impl = "auto"  # reference: whole logits
    num_experts: int = 0  # MLPs that a layer chooses from; 0: every layer has one dense MLP
    experts_per_token: int = 2
    num_shared_experts: int = 0  # experts that every token passes too
    expert_ffn_dim: int | None = None  # width inside an expert; None: ffn_dim
    num_dense_layers: int = 0  # the first layers keep the dense MLP of ffn_dim
    router_score: Literal["softmax", "sigmoid"] = "softmax"  # of logits, nn/router.py
    router_normalized: bool = True  # the weights of a token's experts add up to router_scale
    router_scale: float = 1.0
    router_balance_loss: float = 0.01  # weight of a loss that is 1 when all experts are used alike
    router_z_loss: float = 0.001  # weight of logsumexp(router logits)^2, arXiv:2202.08906
    router_bias_rate: float = 0.0  # what an update moves an expert's bias by, arXiv:2408.15664
    expert_impl: Impl = "auto"

    def __post_init__(self) -> None:
        positive = (
            "vocab_size",
            "num_layers",
            "embed_dim",
            "num_heads",
            "ffn_dim",
            "rope_original_len",
            "scan_unroll",
        )
        for name in positive:
            require(getattr(self, name) > 0, f"ModelConfig.{name}", getattr(self, name), "> 0")
        if self.head_dim is None:
            require(
                self.embed_dim % self.num_heads == 0,
                "ModelConfig.embed_dim",
                self.embed_dim,
                f"a multiple of num_heads={self.num_heads} (or set ModelConfig.head_dim)",
            )
        require(
            self.head_width % 2 == 0 and self.head_width > 0,
            "ModelConfig.head_dim",
            self.head_width,
            "even and > 0 (RoPE)",
        )
        # NTK stretches the frequencies by rope_factor^(H / (H - 2))
        is_wide = self.rope_scaling != "ntk" or self.head_width > 2
        require(is_wide, "ModelConfig.head_dim", self.head_width, "above 2 with rope_scaling='ntk'")
        require(
            self.kv_heads > 0 and self.num_heads % self.kv_heads == 0,
            "ModelConfig.num_kv_heads",
            self.kv_heads,
            f"a divisor of num_heads={self.num_heads}",
        )
        require(
            len(self.layer_pattern) > 0,
            "ModelConfig.layer_pattern",
            self.layer_pattern,
            "at least one layer kind",
        )
        require(
            self.num_layers % len(self.layer_pattern) == 0,
            "ModelConfig.num_layers",
            self.num_layers,
            f"a multiple of the layer_pattern's length {len(self.layer_pattern)}",
        )
        require(
            ("local" in self.layer_pattern) == (self.window is not None),
            "ModelConfig.window",
            self.window,
            "set if and only if layer_pattern has 'local' layers",
        )
        require(self.window is None or self.window > 0, "ModelConfig.window", self.window, "> 0")
        require(self.norm_eps > 0, "ModelConfig.norm_eps", self.norm_eps, "> 0")
        require(self.rope_theta > 1, "ModelConfig.rope_theta", self.rope_theta, "> 1")
        require(self.rope_factor >= 1, "ModelConfig.rope_factor", self.rope_factor, ">= 1")
        for name in ("attention_softcap", "logit_softcap"):
            value = getattr(self, name)
            require(value is None or value > 0, f"ModelConfig.{name}", value, "> 0 or None")
        self._check_experts()

    def _check_experts(self) -> None:
        E, K, period = self.num_experts, self.experts_per_token, len(self.layer_pattern)
        require(E >= 0, "ModelConfig.num_experts", E, ">= 0")
        for name in ("num_shared_experts", "num_dense_layers", "router_bias_rate", *ROUTER_LOSSES):
            require(getattr(self, name) >= 0, f"ModelConfig.{name}", getattr(self, name), ">= 0")
        for name in (
            "num_shared_experts",
            "num_dense_layers",
            "expert_ffn_dim",
            "router_bias_rate",
        ):
            value = getattr(self, name)
            allowed = "left out, or ModelConfig.num_experts set"
            require(E > 0 or not value, f"ModelConfig.{name}", value, allowed)
        if E > 0:
            field = "ModelConfig.experts_per_token"
            require(1 <= K <= E, field, K, f"between 1 and num_experts={E}")
        require(self.expert_width > 0, "ModelConfig.expert_ffn_dim", self.expert_ffn_dim, "> 0")
        require(self.router_scale > 0, "ModelConfig.router_scale", self.router_scale, "> 0")
        dense = self.num_dense_layers
        require(
            dense < self.num_layers and dense % period == 0,
            "ModelConfig.num_dense_layers",
            dense,
            f"below num_layers={self.num_layers} and a multiple of the layer_pattern's length {period}",
        )

    @property
    def kv_heads(self) -> int:
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def head_width(self) -> int:
        return self.embed_dim // self.num_heads if self.head_dim is None else self.head_dim

    @property
    def is_gated(self) -> bool:
        return self.activation in ("swiglu", "geglu")

    @property
    def expert_width(self) -> int:
        return self.ffn_dim if self.expert_ffn_dim is None else self.expert_ffn_dim

    @property
    def num_sparse_layers(self) -> int:
        """Layers with experts."""
        return self.num_layers - self.num_dense_layers if self.num_experts else 0
