"""Training of certainty-forcing distillation: a LoRA adapter, resumable to the same bytes.

Shapes: B rows, L tokens, M masked positions, V vocabulary.
"""

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dlm.distill.certainty import Loss, certainty_loss
from dlm.distill.certainty_batches import Batch, Batches, check_targets, digest
from dlm.distill.certainty_recipe import Recipe, adapter_config
from dlm.distill.certainty_targets import Target
from dlm.distill.weights import facts
from dlm.models.adapter import wrap, write
from dlm.models.model import Model
from dlm.training.loop import Progress
from dlm.training.seeds import noise_seed
from dlm.training.state import read_state

STATE = "training_state.pt"
KINDS = {"recipe": dict, "model": dict, "processes": int, "targets": str, "step": int,
         "adapter": list, "optimizer": dict}  # fmt: skip
"""The fields of a checkpoint and their types."""


class Student(nn.Module):
    """The trained model as one module, so that several devices can share its gradient."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.network = model.network
        self.model = model

    def forward(self, tokens: Tensor, valid: Tensor | None, masked: Tensor) -> Tensor:
        """Logits [M, V] at the masked positions of int64 tokens [B, L]."""
        positions = torch.arange(tokens.shape[1], device=tokens.device)[None]
        hidden = self.model.hidden(tokens, positions, valid)
        return self.model.logits(hidden[masked])


class Trainer:
    """One run: the model with its adapter, the optimizer and the current step."""

    def __init__(
        self, model: Model, targets: Sequence[Target], recipe: Recipe, out: Path, base: str | None
    ) -> None:
        from accelerate import Accelerator, PartialState  # type: ignore[import-untyped]

        self.recipe, self.out, self.base = recipe, out, base
        self.batches = Batches(model.spec, targets, recipe)
        # In a single process the model stays on the device that it was loaded to.
        shared = PartialState(cpu=model.device.type == "cpu").num_processes > 1
        self.accelerator = Accelerator(
            device_placement=shared,
            cpu=model.device.type == "cpu",
            mixed_precision="bf16" if recipe.precision == "bfloat16" else "no",
            gradient_accumulation_steps=recipe.accumulate,
        )
        self.device = self.accelerator.device if shared else model.device
        told = facts(model)  # of the base: the adapter changes layer names and weights
        torch.manual_seed(recipe.seed)  # for the initial values of the adapter
        self.wrapped = wrap(model.network, adapter_config(model.network, recipe))
        if recipe.checkpointing:
            fewer_activations(model.network)({"use_reentrant": False})
        self.weights = [p for p in model.network.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            self.weights, lr=recipe.learning_rate, weight_decay=recipe.weight_decay
        )
        self.student, self.optimizer = self.accelerator.prepare(Student(model), optimizer)
        self.step = 0
        self.facts = {"recipe": asdict(recipe), "processes": self.accelerator.num_processes,
                      "targets": digest(targets), "model": told}  # fmt: skip

    def update(self) -> Progress:
        """Run one optimizer step."""
        began = time.perf_counter()
        recipe, machine = self.recipe, self.accelerator
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.rate(self.step)
        value = tokens = 0.0
        for turn in range(recipe.accumulate):
            forward = (self.step * recipe.accumulate + turn) * machine.num_processes
            batch = self.batches[forward + machine.process_index].to(self.device)
            torch.manual_seed(noise_seed(recipe.seed, forward))  # for dropout, if the model has any
            with machine.accumulate(self.student):
                loss = self.loss(batch)
                value += self.finite(loss.total.item()) / recipe.accumulate
                machine.backward(loss.total)
                if machine.sync_gradients:
                    machine.clip_grad_norm_(self.weights, recipe.clip)
                self.optimizer.step()
                self.optimizer.zero_grad()
            tokens += batch.tokens.numel()
        self.step += 1
        seconds = time.perf_counter() - began
        return Progress(self.step, "certainty", value, tokens / seconds, recipe.rate(self.step - 1))

    def loss(self, batch: Batch) -> Loss:
        """The loss of one forward pass."""
        logits = self.student(batch.tokens, batch.valid, batch.masked)
        recipe = self.recipe
        return certainty_loss(
            logits,
            batch.targets,
            batch.second,
            temperature=recipe.temperature,
            weight=recipe.weight,
        )

    def finite(self, value: float) -> float:
        """Check that a loss is finite, and return it."""
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the loss became {value} at step {self.step}: lower learning_rate, "
                f"which was {self.recipe.rate(self.step):g}"
            )
        return value

    def save(self) -> None:
        """Write the checkpoint atomically, then the adapter."""
        if not self.accelerator.is_main_process:
            return
        self.out.mkdir(parents=True, exist_ok=True)
        state = {
            **self.facts,
            "step": self.step,
            "adapter": [weight.detach() for weight in self.weights],
            "optimizer": self.optimizer.state_dict(),
        }
        torch.save(state, self.out / (STATE + ".part"))
        os.replace(self.out / (STATE + ".part"), self.out / STATE)
        write(self.wrapped, self.out, self.base)

    def resume(self) -> None:
        """Continue from the checkpoint in the folder.

        Raises:
            ValueError: the checkpoint is damaged, or belongs to another recipe, another model,
                other targets or another number of processes.
        """
        path = self.out / STATE
        state = read_state(path, KINDS)
        written, mine = flat(state), flat(self.facts)
        differ = sorted(key for key in mine if written.get(key) != mine[key])
        if differ:
            raise ValueError(f"{path} was written by another run; these differ: {differ}")
        shapes = [weight.shape for weight in self.weights]
        if shapes != [getattr(weight, "shape", None) for weight in state["adapter"]]:
            raise ValueError(f"{path} was written for a network of another shape")
        with torch.no_grad():
            for weight, value in zip(self.weights, state["adapter"], strict=True):
                weight.copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]

    def run(self, report: Callable[[Progress], None], *, save_every: int = 100) -> None:
        """Train to the end of the recipe, saving on the way; see `dlm.training.loop.Trainer`.

        The adapter is written at the end even if no step was left to do: an earlier run may have
        been killed between writing its last checkpoint and its adapter.
        """
        self.student.train()
        while self.step < self.recipe.steps:
            progress = self.update()
            try:
                report(progress)
            except KeyboardInterrupt:
                self.save()
                raise
            if self.step % save_every == 0 and self.step < self.recipe.steps:
                self.save()
        self.save()
        self.student.eval()


def train(
    recipe: Recipe,
    model: Model,
    targets: Sequence[Target],
    out: Path,
    *,
    base: str | None = None,
    resume: bool = False,
    report: Callable[[Progress], None] = lambda progress: None,
) -> Any:
    """Train an adapter and write it to `out`, also when interrupted.

    Args:
        recipe: everything that determines the result.
        model: the base, on its current device; the adapter's layers are added to its network.
        targets: what the base decodes; see `dlm.distill.certainty_targets`.
        out: folder for checkpoints and the adapter, which `dlm.load(..., adapter=out)` reads.
        base: name of the base, for the adapter's configuration.
        resume: continue from the checkpoint in `out`.
        report: called after every step.

    Returns:
        The `PeftModel` around the network.

    Raises:
        ValueError: `out` holds a run and `resume` is not set, or the other way round; the
            checkpoint belongs to another run or is damaged; `out` holds a model; a target or the
            recipe does not fit the model.
    """
    if (out / STATE).exists() != resume:
        state = (
            "no run to resume" if resume else "a run already: resume it or choose another folder"
        )
        raise ValueError(f"out={str(out)!r} holds {state}")
    refuse_model(out)
    check_targets(model.spec, targets)
    check_network(model.network, recipe)
    trainer = Trainer(model, targets, recipe, out, base)
    if resume:
        trainer.resume()
    trainer.run(report)
    return trainer.wrapped


def refuse_model(out: Path) -> None:
    """Refuse a folder that an adapter would make unreadable.

    Raises:
        ValueError: it holds a model.
    """
    if (out / "config.json").exists():
        raise ValueError(
            f"out={str(out)!r} holds a model, which no adapter can lie beside: choose another"
        )


def check_network(network: Any, recipe: Recipe) -> None:
    """Refuse a recipe that does not fit the network, before the network is changed.

    Raises:
        ValueError: the network has none of the layers, or cannot recompute activations.
    """
    adapter_config(network, recipe)
    if recipe.checkpointing:
        fewer_activations(network)


def fewer_activations(network: Any) -> Callable[[dict[str, Any]], None]:
    """The network's method that turns on activation checkpointing (recomputing activations).

    Raises:
        ValueError: the network has none.
    """
    # transformers renamed the method and warns of the old name.
    for name in ("activation_checkpointing_enable", "gradient_checkpointing_enable"):
        if hasattr(network, name):
            enable: Callable[[dict[str, Any]], None] = getattr(network, name)
            return enable
    raise ValueError(f"checkpointing must be False for a {type(network).__name__}: it has none")


def flat(facts: dict[str, Any]) -> dict[str, Any]:
    """The facts of a run in one flat dict, including those of its recipe and its model."""
    own = {key: facts[key] for key in ("processes", "targets")}
    return {**facts["recipe"], **facts["model"], **own}
