"""The optimizers of a training run."""

from typing import Any

from torch import nn
from torch.optim import AdamW, Muon, Optimizer

OPTIMIZERS = ("adamw", "muon")
BETAS = (0.9, 0.98)


def optimizers(
    network: Any, name: str, *, learning_rate: float, weight_decay: float
) -> list[Optimizer]:
    """AdamW for all parameters, or Muon for the matrices within layers and AdamW for the rest.

    AdamW: Loshchilov and Hutter 2019, arXiv:1711.05101. Muon: Jordan et al. 2024, scaled as in
    Liu et al. 2025, arXiv:2502.16982, eq. 4, so that one learning rate suits both.

    Args:
        network: a transformers model; its embedding and output matrices do not count as within
            layers.
        name: one of `OPTIMIZERS`.
        learning_rate: of all parameters.
        weight_decay: of matrices; vectors have none.
    """
    ends = {id(network.get_input_embeddings().weight), id(network.get_output_embeddings().weight)}
    matrices = [each for each in network.parameters() if each.ndim > 1]
    vectors = [each for each in network.parameters() if each.ndim <= 1]
    hidden: list[nn.Parameter] = []
    if name == "muon":
        hidden = [each for each in matrices if id(each) not in ends]
        matrices = [each for each in matrices if id(each) in ends]
    rest = AdamW(
        [
            {"params": matrices, "weight_decay": weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=learning_rate,
        betas=BETAS,
        fused=True,
    )
    if not hidden:
        return [rest]
    muon = Muon(hidden, lr=learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
    return [muon, rest]
