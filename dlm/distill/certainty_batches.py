"""Training batches of certainty-forcing distillation.

Shapes: B rows, L tokens, M masked positions.
"""

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dlm.canvas import active_length
from dlm.distill.certainty import block_numbers, complementary_views, draw_blocks
from dlm.distill.certainty_recipe import Recipe
from dlm.distill.certainty_targets import Target, check_family
from dlm.models.spec import ModelSpec
from dlm.training.seeds import noise_seed


@dataclass(frozen=True, slots=True)
class Batch:
    """The input of one forward pass: the rows of the first view, then those of the second, 2 B."""

    tokens: Tensor  # int64 [2 B, L], with masks
    valid: Tensor | None  # bool [2 B, L], False at padding; None without padding
    masked: Tensor  # bool [2 B, L]
    targets: Tensor  # int64 [M]
    second: Tensor  # bool [M], True for the second view

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device."""
        moved = (self.tokens, self.valid, self.masked, self.targets, self.second)
        return Batch(*(None if part is None else part.to(device) for part in moved))  # type: ignore[arg-type]


class Batches:
    """The batch of every forward pass, a pure function of the seed and the pass number."""

    def __init__(self, spec: ModelSpec, targets: Sequence[Target], recipe: Recipe) -> None:
        self.spec = spec
        self.targets = targets
        self.recipe = recipe

    def __getitem__(self, forward: int) -> Batch:
        size, spec, recipe = self.recipe.batch_size, self.spec, self.recipe
        drawn = [self.target(forward * size + row) for row in range(size)]
        lines = [[*each.prompt, *each.response, *spec.suffix] for each in drawn]
        start = torch.tensor([len(each.prompt) for each in drawn])
        whole = torch.tensor([len(line) for line in lines])
        end, length = whole - len(spec.suffix), int(whole.max())
        rows = torch.tensor([line + [spec.eos_id] * (length - len(line)) for line in lines])
        inside = torch.arange(length) < whole[:, None]
        size_of_block = active_length(recipe.block_length, spec)
        block = block_numbers(
            start, end, length, block_length=size_of_block, block_size=spec.block_size
        )
        noise = torch.Generator().manual_seed(noise_seed(recipe.seed, forward))
        active = draw_blocks(block, torch.rand(size, generator=noise, dtype=torch.float64))
        uniform = torch.rand(rows.shape, generator=noise, dtype=torch.float64)
        views = complementary_views(
            rows, block, active, uniform, mask_id=spec.mask_id, ratio=recipe.ratio
        )
        masked = views.masked.flatten(0, 1)
        return Batch(
            views.tokens.flatten(0, 1),
            None if bool(inside.all()) else inside.repeat(2, 1),
            masked,
            rows.repeat(2, 1)[masked],
            (torch.arange(2 * size) >= size)[:, None].expand(masked.shape)[masked],
        )

    def target(self, place: int) -> Target:
        """The target at a place in an endless sequence, which is reshuffled for every epoch."""
        epoch, index = divmod(place, len(self.targets))
        order = list(range(len(self.targets)))
        random.Random(f"{self.recipe.seed}/{epoch}").shuffle(order)
        return self.targets[order[index]]


def check_targets(spec: ModelSpec, targets: Sequence[Target]) -> None:
    """Refuse targets that do not fit the model."""
    check_family(spec)
    if not targets:
        raise ValueError("targets must hold at least one target, got none")
    for number_, target in enumerate(targets):
        ids = [*target.prompt, *target.response, *spec.suffix]
        fits = bool(target.prompt and target.response) and len(ids) <= spec.max_length
        if not fits or not 0 <= min(ids) <= max(ids) < spec.vocab_size:
            raise ValueError(
                f"target {number_} must have a prompt and a response of ids below "
                f"{spec.vocab_size}, at most {spec.max_length} together: it has "
                f"{len(target.prompt)} and {len(target.response)} tokens up to id {max(ids)}"
            )


def digest(targets: Sequence[Target]) -> str:
    """CRC-32 of the tokens of all targets."""
    crc = 0
    for target in targets:
        crc = zlib.crc32(repr((target.prompt, target.response)).encode(), crc)
    return f"{crc:08x}"
