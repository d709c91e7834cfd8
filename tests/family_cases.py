"""Small checkpoints of the families, and the decoder-shaped networks written a second time.

Checkpoints of some families were written by the official code, and come with its logits; the
others are random tensors under the released names. `reference` is plain torch in float64 and knows
the published equations and the released names alone.

Shapes: B rows, L tokens, D model width, H heads, E head width.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

VOCAB, MASK, EOS = 96, 91, 90
LAYERS = 2
INNER = 64  # of an MLP or of one expert

STRETCH = {
    "beta_fast": 4.0,
    "beta_slow": 0.1,
    "factor": 8.0,
    "llama_4_scaling_beta": 0.7,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 6,
    "rope_theta": 100.0,
    "rope_type": "yarn",
}
"""YaRN such that turns lie between fast and slow, of rows longer than what it was trained on."""

LLADA = {
    "embed_tokens": "model.transformer.wte",
    "norm": "model.transformer.ln_f",
    "lm_head": "model.transformer.ff_out",
    "layer": "model.transformer.blocks",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ff_norm",
    "self_attn.q_proj": "q_proj",
    "self_attn.k_proj": "k_proj",
    "self_attn.v_proj": "v_proj",
    "self_attn.o_proj": "attn_out",
    "mlp.gate_proj": "ff_proj",
    "mlp.up_proj": "up_proj",
    "mlp.down_proj": "ff_out",
}
"""Names of the released LLaDA for those that all others share."""


@dataclass(frozen=True)
class Case:
    """A random checkpoint: what its `config.json` says, and what its network does."""

    model_type: str
    architecture: str
    family: str
    theta: float = 1e6
    heads: int = 4
    groups: int = 2
    width: int = 48  # D
    head: int = 12  # E
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    tied: bool = False
    block: int | None = None
    causal: bool = False  # whether blocks begin where decoding has them begin
    reordered: bool = False  # whether a token sees what is before it once masks stand last
    shift: bool = False
    eps: float = 1e-6
    experts: int = 0  # of every layer, `chosen` of which a token takes; 0 for a dense MLP
    chosen: int = 0
    names: dict[str, str] = field(default_factory=dict)
    stem: str = "model"  # in front of the names of all but the projection
    projection: str = "lm_head"
    stretch: dict[str, Any] = field(default_factory=dict)  # `rope_parameters` of YaRN
    more: dict[str, Any] = field(default_factory=dict)
    omits: tuple[str, ...] = ()  # what the release does not say

    def config(self) -> dict[str, Any]:
        """As a release writes it."""
        if self.names:
            sizes: dict[str, Any] = {
                "d_model": self.width,
                "n_heads": self.heads,
                "n_kv_heads": self.groups,
                "n_layers": LAYERS,
                "mlp_hidden_size": INNER,
                "max_sequence_length": 128,
                "weight_tying": self.tied,
            }
        else:
            sizes = {
                "hidden_size": self.width,
                "num_attention_heads": self.heads,
                "num_key_value_heads": self.groups,
                "num_hidden_layers": LAYERS,
                "intermediate_size": INNER,
                "max_position_embeddings": 128,
                "tie_word_embeddings": self.tied,
                "hidden_act": "silu",
                "rope_scaling": None,
            }
        if self.qk_norm or self.stretch:
            sizes["head_dim"] = self.head
        if self.experts:
            sizes |= {
                "num_experts": self.experts,
                "num_experts_per_tok": self.chosen,
                "moe_intermediate_size": INNER,
            }
        common = {
            "model_type": self.model_type,
            "architectures": [self.architecture],
            "auto_map": {"AutoConfig": "bait.Config", "AutoModel": "bait.Model"},
            "vocab_size": VOCAB,
            "rope_theta": self.theta,
            "rms_norm_eps": self.eps,
            "mask_token_id": MASK,
            "eos_token_id": EOS,
            "torch_dtype": "float32",
        }
        told = common | sizes | self.more
        return {key: value for key, value in told.items() if key not in self.omits}

    def name(self, ours: str) -> str:
        """The released name of `embed_tokens`, `layers.1.mlp.up_proj` and the like."""
        if not self.names:
            return self.projection if ours == "lm_head" else f"{self.stem}.{ours}"
        if not ours.startswith("layers."):
            return self.names[ours]
        _, number, leaf = ours.split(".", 2)
        return f"{self.names['layer']}.{number}.{self.names[leaf]}"

    def networks(self, mlp: str) -> list[str]:
        """Names of the SwiGLU networks of an MLP: itself, or its experts."""
        return [f"{mlp}.experts.{e}" for e in range(self.experts)] if self.experts else [mlp]

    def weights(self) -> dict[str, Tensor]:
        """Random tensors under the released names."""
        generator = torch.Generator().manual_seed(len(self.architecture))

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        # Tied to the projection, rows of length 1 would give logits of another magnitude.
        found = {"embed_tokens.weight": normal(VOCAB, self.width) * (0.4 if self.tied else 1.0)}
        found["norm.weight"] = 1 + 0.1 * normal(self.width)
        if not self.tied:
            found["lm_head.weight"] = normal(VOCAB, self.width) * 4 / self.width**0.5
        wide, narrow = self.heads * self.head, self.groups * self.head
        matrices = {
            "self_attn.q_proj": (wide, self.width, self.qkv_bias),
            "self_attn.k_proj": (narrow, self.width, self.qkv_bias),
            "self_attn.v_proj": (narrow, self.width, self.qkv_bias),
            "self_attn.o_proj": (self.width, wide, self.o_bias),
        }
        if self.experts:
            matrices["mlp.gate"] = (self.experts, self.width, False)
        for stem in self.networks("mlp"):
            matrices[f"{stem}.gate_proj"] = (INNER, self.width, self.mlp_bias)
            matrices[f"{stem}.up_proj"] = (INNER, self.width, self.mlp_bias)
            matrices[f"{stem}.down_proj"] = (self.width, INNER, self.mlp_bias)
        norms = {"input_layernorm": self.width, "post_attention_layernorm": self.width}
        if self.qk_norm:
            norms |= {"self_attn.q_norm": self.head, "self_attn.k_norm": self.head}
        for layer in range(LAYERS):
            for leaf, (rows, columns, bias) in matrices.items():
                stem = f"layers.{layer}.{leaf}"
                found[f"{stem}.weight"] = 1.5 * normal(rows, columns) / columns**0.5
                if bias:
                    found[f"{stem}.bias"] = 0.2 * normal(rows)
            for leaf, size in norms.items():
                found[f"layers.{layer}.{leaf}.weight"] = 1 + 0.1 * normal(size)
        return {
            f"{self.name(stem)}.{kind}": tensor
            for (stem, _, kind), tensor in ((key.rpartition("."), t) for key, t in found.items())
        }

    def write(self, folder: Path) -> None:
        """A checkpoint folder."""
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(self.config()))
        save_file(self.weights(), folder / "model.safetensors", metadata={"format": "pt"})

    def norm(self, x: Tensor, weight: Tensor) -> Tensor:
        """x / sqrt(mean x^2 + eps), scaled."""
        return weight * x / (x.square().mean(-1, keepdim=True) + self.eps).sqrt()

    def turned(self, x: Tensor) -> Tensor:
        """Rotary embedding of [B, H, L, E]: column j turns with column j + E/2, as one number."""
        half = self.head // 2
        speed = self.slowed(self.theta ** (-torch.arange(half, dtype=torch.float64) / half))
        angle = torch.arange(x.shape[2], dtype=torch.float64)[:, None] * speed
        number = torch.complex(x[..., :half], x[..., half:]) * torch.polar(
            torch.ones_like(angle), angle
        )
        return torch.cat((number.real, number.imag), -1)

    def slowed(self, speed: Tensor) -> Tensor:
        """Speeds [E/2] under YaRN: those with few turns in the trained length are divided.

        Column j has low turns from j = E ln(N / 2 pi beta) / 2 ln theta on, in whole columns.
        """
        if not self.stretch:
            return speed
        trained: int = self.stretch["original_max_position_embeddings"]

        def column(beta: float) -> float:
            return self.head * math.log(trained / (2 * math.pi * beta)) / (2 * math.log(self.theta))

        first = max(math.floor(column(self.stretch["beta_fast"])), 0)
        last = min(math.ceil(column(self.stretch["beta_slow"])), self.head - 1)
        slow = ((torch.arange(len(speed)) - first) / (last - first)).clamp(0, 1)
        factor: float = self.stretch["factor"]
        return speed * (1 - slow) + speed / factor * slow

    def sharpened(self, query: Tensor) -> Tensor:
        """Queries [B, H, L, E] times 1 + beta ln(1 + floor(i / N))."""
        if not self.stretch:
            return query
        trained: int = self.stretch["original_max_position_embeddings"]
        beta: float = self.stretch["llama_4_scaling_beta"]
        times = torch.arange(query.shape[2], dtype=torch.float64) // trained
        return query * (1 + beta * (1 + times).log())[:, None]

    def mlp(self, x: Tensor, affine: Callable[[Tensor, str], Tensor], stem: str) -> Tensor:
        """silu(gate x) * up x through down, or the sum of such experts.

        A token takes the `chosen` experts of largest p = softmax(gate x), each weighed by its part
        of their p.
        """
        outputs = []
        for name in self.networks(stem):
            gate = affine(x, f"{name}.gate_proj")
            inner = gate * gate.sigmoid() * affine(x, f"{name}.up_proj")
            outputs.append(affine(inner, f"{name}.down_proj"))
        if not self.experts:
            return outputs[0]
        probability = affine(x, f"{stem}.gate").softmax(-1)
        least = probability.sort(-1, descending=True).values[..., self.chosen - 1, None]
        share = probability * (probability >= least)
        share = share / share.sum(-1, keepdim=True)
        return (torch.stack(outputs, -1) * share[..., None, :]).sum(-1)

    def reference(self, weights: dict[str, Tensor], ids: Tensor, sees: Tensor) -> Tensor:
        """Logits [B, L, V] of int64 [B, L], `sees` bool [L, L] from query to key."""
        double = {key: tensor.double() for key, tensor in weights.items()}

        def affine(x: Tensor, stem: str) -> Tensor:
            name = self.name(stem)
            return F.linear(x, double[f"{name}.weight"], double.get(f"{name}.bias"))

        def scale(stem: str) -> Tensor:
            return double[f"{self.name(stem)}.weight"]

        x = double[f"{self.name('embed_tokens')}.weight"][ids]
        for layer in range(LAYERS):
            stem = f"layers.{layer}"
            normed = self.norm(x, scale(f"{stem}.input_layernorm"))
            query, key, value = (
                affine(normed, f"{stem}.self_attn.{part}_proj")
                .unflatten(-1, (-1, self.head))
                .transpose(1, 2)
                for part in "qkv"
            )
            if self.qk_norm:
                query = self.norm(query, scale(f"{stem}.self_attn.q_norm"))
                key = self.norm(key, scale(f"{stem}.self_attn.k_norm"))
            key, value = (
                part.repeat_interleave(self.heads // self.groups, 1)
                for part in (self.turned(key), value)
            )
            score = self.sharpened(self.turned(query)) @ key.transpose(2, 3) / self.head**0.5
            mixed = score.masked_fill(~sees, -torch.inf).softmax(-1) @ value
            x = x + affine(mixed.transpose(1, 2).flatten(2), f"{stem}.self_attn.o_proj")
            normed = self.norm(x, scale(f"{stem}.post_attention_layernorm"))
            x = x + self.mlp(normed, affine, f"{stem}.mlp")
        x = self.norm(x, scale("norm"))
        return F.linear(x, scale("embed_tokens" if self.tied else "lm_head"))


QWEN2: dict[str, Any] = {"qkv_bias": True, "more": {"use_sliding_window": False}}
CODA = {"attention_kernel": "flash_attention", "mask_block_sizes": [4, 8], "sampling_eps": [0.1, 1]}
"""What its files say of training."""
QWEN3: dict[str, Any] = {"qk_norm": True, "head": 16, "more": {"attention_bias": False}}
WEDLM: dict[str, Any] = QWEN3 | {"more": {"attention_bias": False, "qk_norm": True}}
CASES = {
    case.family: case
    for case in (
        Case("llada", "LLaDAModelLM", "llada", theta=5e5, eps=1e-5, groups=4, names=LLADA),
        Case(
            "illada",
            "ILLaDAForCausalLM",
            "illada",
            theta=2e5,
            qkv_bias=True,
            o_bias=True,
            mlp_bias=True,
            tied=True,
            more={"attention_bias": True, "mlp_bias": True, "layer_norm_eps": None},
        ),
        Case("Dream", "DreamModel", "dream", shift=True, **QWEN2),
        Case(
            "Dream",
            "DreamForCausalLM",
            "dream-reasoner",
            block=8,
            qk_norm=True,
            head=16,
            more={
                "block_size": 8,
                "rope_theta": None,
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
            },
        ),
        Case("sdar", "SDARForCausalLM", "sdar", block=4, **QWEN3),
        Case(
            "sdar_moe",
            "SDARMoeForCausalLM",
            "sdar-moe",
            block=4,
            experts=8,
            chosen=3,
            qk_norm=True,
            head=16,
            more={
                "attention_bias": False,
                "block_size": 4,
                "decoder_sparse_step": 1,
                "mlp_only_layers": [],
                "norm_topk_prob": True,
            },
        ),
        Case(
            "Fast_dLLM_Qwen",
            "Fast_dLLM_QwenForCausalLM",
            "fast-dllm-v2",
            shift=True,
            block=8,
            qkv_bias=True,
            tied=True,
            more={"bd_size": 8, "layer_types": ["full_attention"] * LAYERS},
        ),
        Case("qwen2", "Qwen2ForCausalLM", "open-dcoder", shift=True, tied=True, **QWEN2),
        Case(
            "CoDA",
            "CoDALanguageModel",
            "coda",
            shift=True,
            qk_norm=True,
            more={"attention_bias": False, "sliding_window": None, **CODA},
            omits=("tie_word_embeddings",),
        ),
        Case("llama", "LlamaForCausalLM", "diffullama", theta=1e4, eps=1e-5, shift=True),
        Case(
            "llama",
            "StableDiffcoderForCausalLM",
            "stable-diffcoder",
            theta=5e5,
            block=4,
            more={"attention_bias": False, "mlp_bias": False, "pretraining_tp": 1},
        ),
        Case("wedlm", "WeDLMForCausalLM", "wedlm", block=128, causal=True, reordered=True, **WEDLM),
        Case("a2d-qwen2", "A2DQwen2LMHeadModel", "a2d-qwen2", tied=True, **QWEN2),
        Case("a2d-qwen3", "A2DQwen3LMHeadModel", "a2d-qwen3", tied=True, **QWEN3),
        Case("a2d-llama", "A2DLlamaLMHeadModel", "a2d-llama", theta=5e5, eps=1e-5, tied=True),
        Case(
            "nemotron_labs_diffusion",
            "NemotronLabsDiffusionModel",
            "nemotron-labs-diffusion",
            theta=100.0,
            eps=1e-5,
            head=16,
            block=8,
            causal=True,
            stem="encoder",
            projection="diffusion_head",
            stretch=STRETCH,
            more={
                "attention_bias": False,
                "block_size": 8,
                "dlm_paradigm": "bidirectional",
                "mlp_bias": False,
                "rope_parameters": STRETCH,
                "sliding_window": None,
            },
        ),
    )
}
