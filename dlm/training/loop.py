"""The training loop: cosine decay, and checkpoints that resume to the same numbers."""

import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dlm.options import integer, known, number
from dlm.training.batches import Batch, Batches
from dlm.training.loss import (
    mask_counts,
    mask_exactly,
    masked_diffusion_loss,
    stratified_levels,
)
from dlm.training.optimizer import OPTIMIZERS, optimizers
from dlm.training.seeds import LARGEST_SEED, noise_seed
from dlm.training.state import differences, facts, read_run

STATE = "training_state.pt"


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that determines the result of a run, besides the network and its tokenizer."""

    tasks: dict[str, float] = field(default_factory=dict)  # share of the batches of each task
    steps: int = 1000
    tokens_per_batch: int = 8192
    max_extra: int = 16  # end-of-text tokens beyond the longest response
    optimizer: str = "adamw"  # or "muon"
    learning_rate: float = 3e-3
    warmup: int = 100  # steps
    weight_decay: float = 0.01
    clip: float = 1.0  # gradient norm
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "tokens_per_batch"):
            integer(name, getattr(self, name), least=1)
        for name in ("max_extra", "warmup"):
            integer(name, getattr(self, name), least=0)
        number("weight_decay", self.weight_decay, least=0.0)
        for name in ("learning_rate", "clip"):
            if number(name, getattr(self, name), least=0.0) == 0:
                raise ValueError(f"{name} must be > 0, got 0")
        integer("seed", self.seed, least=0, most=LARGEST_SEED)
        known("optimizer", self.optimizer, OPTIMIZERS)
        shares = [number(f"share of {task}", x, least=0.0) for task, x in self.tasks.items()]
        if not shares or min(shares) == 0:
            raise ValueError(f"tasks must name a positive share for each task, got {self.tasks}")

    def rate(self, step: int) -> float:
        """Learning rate of a step: linear warm-up, then a half cosine down to a hundredth."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(self.steps - self.warmup, 1)
        return self.learning_rate * (0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2)


@dataclass(frozen=True, slots=True)
class Progress:
    """What one step reports."""

    step: int  # steps done so far
    task: str
    loss: float  # nats per masked token
    tokens_per_second: float
    learning_rate: float


def corrupt(batch: Batch, mask_id: int, seed: int) -> tuple[Tensor, Tensor]:
    """Mask exactly k of the response positions of each row, with k uniform and stratified.

    Returns:
        Tokens int64 [B, L] with masks, and the mask bool [B, L].
    """
    generator = torch.Generator().manual_seed(seed)
    rows = batch.tokens.shape[0]
    level = stratified_levels(rows, torch.rand((), generator=generator, dtype=torch.float64))
    count = mask_counts(batch.maskable.sum(-1), level)
    noise = torch.rand(batch.tokens.shape, generator=generator)
    masked = mask_exactly(batch.maskable, count, noise)
    return batch.tokens.masked_fill(masked, mask_id), masked


class Trainer:
    """One run: the network, its optimizers and the current step."""

    def __init__(
        self, network: Any, batches: Batches, recipe: Recipe, *, mask_id: int, out: Path
    ) -> None:
        self.network = network
        self.batches = batches
        self.recipe = recipe
        self.mask_id = mask_id
        self.out = out
        self.step = 0
        self.facts = facts(asdict(recipe), network, batches)
        self.device = next(network.parameters()).device
        self.optimizers = optimizers(
            network,
            recipe.optimizer,
            learning_rate=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
        )

    def update(self) -> Progress:
        """Train on one batch."""
        began = time.perf_counter()
        batch = self.batches[self.step]
        tokens, masked = corrupt(batch, self.mask_id, noise_seed(self.recipe.seed, self.step))
        learning_rate = self.recipe.rate(self.step)
        for group in (group for each in self.optimizers for group in each.param_groups):
            group["lr"] = learning_rate
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            masked = masked.to(self.device)
            hidden = self.network.model(tokens.to(self.device)).last_hidden_state
            logits = self.network.lm_head(hidden[masked])
            loss = masked_diffusion_loss(logits, batch.tokens.to(self.device), masked)
        value = loss.item()
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the loss became {value} at step {self.step}: lower learning_rate, "
                f"which was {learning_rate:g}"
            )
        self.network.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.clip)
        for each in self.optimizers:
            each.step()
        self.step += 1
        seconds = time.perf_counter() - began
        return Progress(self.step, batch.task, value, tokens.numel() / seconds, learning_rate)

    def save(self) -> None:
        """Write the checkpoint atomically.

        Raises:
            FloatingPointError: a weight is not finite, although the loss of the last update was.
        """
        if not all(bool(weight.isfinite().all()) for weight in self.network.parameters()):
            raise FloatingPointError(
                f"weights became NaN or infinite by step {self.step}: lower learning_rate, "
                f"which was {self.recipe.rate(max(self.step - 1, 0)):g}"
            )
        self.out.mkdir(parents=True, exist_ok=True)
        state = {
            **self.facts,
            "step": self.step,
            "network": self.network.state_dict(),
            "optimizers": [each.state_dict() for each in self.optimizers],
        }
        torch.save(state, self.out / (STATE + ".part"))
        os.replace(self.out / (STATE + ".part"), self.out / STATE)

    def resume(self) -> None:
        """Continue from the checkpoint in the folder.

        A checkpoint without facts about its network and data is refused. The versions that wrote
        such checkpoints drew other batches, so training could not continue to the same numbers.

        Raises:
            ValueError: the checkpoint is damaged, or belongs to another recipe, network, tokenizer,
                data or held-out prompts.
        """
        path = self.out / STATE
        state = read_run(path)
        differ = differences(state, self.facts)
        if differ:
            raise ValueError(f"{path} was written by another run; these differ: {differ}")
        shapes = {name: value.shape for name, value in self.network.state_dict().items()}
        if shapes != {name: value.shape for name, value in state["network"].items()}:
            raise ValueError(f"{path} was written for a network of another shape")
        self.network.load_state_dict(state["network"])
        for each, kept in zip(self.optimizers, state["optimizers"], strict=True):
            each.load_state_dict(kept)
        self.step = state["step"]

    def run(self, report: Callable[[Progress], None], *, save_every: int = 200) -> None:
        """Train to the end of the recipe, saving on the way.

        An interrupt that `report` raises falls between two steps, and a checkpoint is saved. After
        an interrupt within a step, or an error, the last checkpoint remains as it was.
        """
        self.network.train()
        try:
            while self.step < self.recipe.steps:
                progress = self.update()
                try:
                    report(progress)
                except KeyboardInterrupt:
                    self.save()
                    raise
                if self.step % save_every == 0 or self.step == self.recipe.steps:
                    self.save()
        finally:
            self.network.eval()
