"""Nemotron-Labs-Diffusion: the class that checkpoints declare, and its weight names."""

from dlm.models.nemotron_configs import NemotronLabsDiffusionConfig
from dlm.models.transformer import TransformerForMaskedLM


class NemotronLabsDiffusionModel(TransformerForMaskedLM):
    """Nemotron-Labs-Diffusion (NVIDIA 2026)."""

    config_class = NemotronLabsDiffusionConfig
    renamings = (
        (r"^encoder\.", "model."),
        (r"^diffusion_head\.", "lm_head."),
    )
