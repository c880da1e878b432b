# ruff: noqa: N803, N806 (shape suffixes)
"""The Qwen3 architecture in plain torch, for training: parameter names equal Hugging Face's.

Norms are fused, and logits are computed only where there is a loss.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Sizes of the network."""

    vocab: int
    hidden: int = 192
    layers: int = 6
    heads: int = 6
    kv_heads: int = 3
    head_dim: int = 32
    inner: int = 512
    max_positions: int = 2048
    rope_theta: float = 10000.0
    epsilon: float = 1e-6

    def huggingface(self) -> dict[str, Any]:
        """The `config.json` of this network, without the token ids."""
        return {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "vocab_size": self.vocab,
            "hidden_size": self.hidden,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": self.max_positions,
            "rope_theta": self.rope_theta,
            "rms_norm_eps": self.epsilon,
            "attention_bias": False,
            "attention_dropout": 0.0,
            "initializer_range": 0.02,
            "tie_word_embeddings": True,
            "use_cache": True,
            "use_sliding_window": False,
            "torch_dtype": "bfloat16",
        }


class _Norm(nn.Module):
    def __init__(self, size: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.shape, self.epsilon = (size,), epsilon

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, self.shape, self.weight, self.epsilon)


class _Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.sizes = (shape.heads, shape.kv_heads, shape.head_dim)
        wide, narrow = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        self.q_proj = nn.Linear(shape.hidden, wide, bias=False)
        self.k_proj = nn.Linear(shape.hidden, narrow, bias=False)
        self.v_proj = nn.Linear(shape.hidden, narrow, bias=False)
        self.o_proj = nn.Linear(wide, shape.hidden, bias=False)
        self.q_norm = _Norm(shape.head_dim, shape.epsilon)
        self.k_norm = _Norm(shape.head_dim, shape.epsilon)

    def forward(self, x_BTC: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
        heads, kv_heads, dim = self.sizes
        B, T, _ = x_BTC.shape
        q_BHTD = self.q_norm(self.q_proj(x_BTC).view(B, T, heads, dim)).transpose(1, 2)
        k_BKTD = self.k_norm(self.k_proj(x_BTC).view(B, T, kv_heads, dim)).transpose(1, 2)
        v_BKTD = self.v_proj(x_BTC).view(B, T, kv_heads, dim).transpose(1, 2)
        q_BHTD, k_BKTD = _rotate(q_BHTD, cos_TD, sin_TD), _rotate(k_BKTD, cos_TD, sin_TD)
        group = heads // kv_heads
        mixed_BHTD = functional.scaled_dot_product_attention(
            q_BHTD,
            k_BKTD.repeat_interleave(group, dim=1),
            v_BKTD.repeat_interleave(group, dim=1),
            is_causal=True,
        )
        return self.o_proj(mixed_BHTD.transpose(1, 2).reshape(B, T, heads * dim))


class _Mlp(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden, shape.inner, bias=False)
        self.up_proj = nn.Linear(shape.hidden, shape.inner, bias=False)
        self.down_proj = nn.Linear(shape.inner, shape.hidden, bias=False)

    def forward(self, x_BTC: Tensor) -> Tensor:
        return self.down_proj(functional.silu(self.gate_proj(x_BTC)) * self.up_proj(x_BTC))


class _Layer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = _Norm(shape.hidden, shape.epsilon)
        self.self_attn = _Attention(shape)
        self.post_attention_layernorm = _Norm(shape.hidden, shape.epsilon)
        self.mlp = _Mlp(shape)

    def forward(self, x_BTC: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
        x_BTC = x_BTC + self.self_attn(self.input_layernorm(x_BTC), cos_TD, sin_TD)
        return x_BTC + self.mlp(self.post_attention_layernorm(x_BTC))


class _Body(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab, shape.hidden)
        self.layers = nn.ModuleList(_Layer(shape) for _ in range(shape.layers))
        self.norm = _Norm(shape.hidden, shape.epsilon)


class Network(nn.Module):
    """Token ids to logits at chosen positions; input and output embeddings are tied."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.model = _Body(shape)
        positions_T = torch.arange(shape.max_positions, dtype=torch.float32)
        half = torch.arange(0, shape.head_dim, 2, dtype=torch.float32) / shape.head_dim
        angles_TD = torch.outer(positions_T, shape.rope_theta**-half).repeat(1, 2)
        self.register_buffer("cos_TD", angles_TD.cos(), persistent=False)
        self.register_buffer("sin_TD", angles_TD.sin(), persistent=False)
        depth_scale = (2 * shape.layers) ** -0.5
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                scale = 0.02 if "embed" in name else parameter.shape[1] ** -0.5
                if name.endswith(("o_proj.weight", "down_proj.weight")):
                    scale *= depth_scale
                nn.init.normal_(parameter, std=scale)

    def forward(self, ids_BT: Tensor, chosen_BT: Tensor | None = None) -> Tensor:
        """Logits (N, V) where `chosen_BT` is true, in row order; (B, T, V) without it."""
        T = ids_BT.shape[1]
        cos_TD = self.get_buffer("cos_TD")[:T]
        sin_TD = self.get_buffer("sin_TD")[:T]
        x_BTC = self.model.embed_tokens(ids_BT)
        for layer in self.model.layers:
            x_BTC = layer(x_BTC, cos_TD, sin_TD)
        if chosen_BT is not None:
            x_BTC = x_BTC[chosen_BT]
        return functional.linear(self.model.norm(x_BTC), self.model.embed_tokens.weight)


def _rotate(x_BHTD: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
    half = x_BHTD.shape[-1] // 2
    turned_BHTD = torch.cat((-x_BHTD[..., half:], x_BHTD[..., :half]), dim=-1)
    return x_BHTD * cos_TD + turned_BHTD * sin_TD
