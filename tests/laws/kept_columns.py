"""A cache as plain loops have it, to tell again what the engine's leaves out."""

import torch
from torch import Tensor

from dlm.cache import View


class Columns(View):
    """Some columns of one row are new; the others are what forwards before left."""

    def __init__(
        self, layers: dict[int, list[Tensor]], columns: slice | list[int], length: int
    ) -> None:
        """Take keys and values of each layer so far, the new columns, and how many there are."""
        self.layers = layers
        self.columns = columns
        self.length = length

    def update(self, key: Tensor, value: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        if layer not in self.layers:
            shape = (*key.shape[:2], self.length, key.shape[3])
            self.layers[layer] = [torch.zeros(shape, dtype=key.dtype) for _ in range(2)]
        kept = self.layers[layer]
        for old, new in zip(kept, (key, value), strict=True):
            old[:, :, self.columns] = new
        return kept[0], kept[1]
