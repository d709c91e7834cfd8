"""Families with the architecture of Qwen or Llama, under the class names that checkpoints declare.

Everything that distinguishes them is in their configurations. Released weights already have the
names of `dlm.models.transformer`.
"""

from dlm.models.qwen_configs import (
    A2dLlamaConfig,
    A2dQwen2Config,
    A2dQwen3Config,
    CodaConfig,
    DiffuLlamaConfig,
    DreamConfig,
    DreamReasonerConfig,
    FastDllmQwenConfig,
    OpenDcoderConfig,
    SdarConfig,
    StableDiffCoderConfig,
    WeDLMConfig,
)
from dlm.models.transformer import TransformerForMaskedLM


class DreamModel(TransformerForMaskedLM):
    """Dream (Ye et al. 2025, arXiv:2508.15487)."""

    config_class = DreamConfig


class DreamForCausalLM(TransformerForMaskedLM):
    """DreamReasoner."""

    config_class = DreamReasonerConfig


class SDARForCausalLM(TransformerForMaskedLM):
    """SDAR and TraDo."""

    config_class = SdarConfig


class Fast_dLLM_QwenForCausalLM(TransformerForMaskedLM):
    """Fast-dLLM v2."""

    config_class = FastDllmQwenConfig


class Qwen2ForCausalLM(TransformerForMaskedLM):
    """Open-dCoder."""

    config_class = OpenDcoderConfig


class CoDALanguageModel(TransformerForMaskedLM):
    """CoDA."""

    config_class = CodaConfig


class LlamaForCausalLM(TransformerForMaskedLM):
    """DiffuLLaMA."""

    config_class = DiffuLlamaConfig


class StableDiffcoderForCausalLM(TransformerForMaskedLM):
    """Stable-DiffCoder."""

    config_class = StableDiffCoderConfig


class WeDLMForCausalLM(TransformerForMaskedLM):
    """WeDLM, causal unless given a mask: decoding passes that of `masks_last`."""

    config_class = WeDLMConfig


class A2DQwen2LMHeadModel(TransformerForMaskedLM):
    """Qwen2 converted to bidirectional attention."""

    config_class = A2dQwen2Config


class A2DQwen3LMHeadModel(TransformerForMaskedLM):
    """Qwen3 converted to bidirectional attention."""

    config_class = A2dQwen3Config


class A2DLlamaLMHeadModel(TransformerForMaskedLM):
    """Llama converted to bidirectional attention."""

    config_class = A2dLlamaConfig
