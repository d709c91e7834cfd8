"""A complete training run, from a network to a folder that `dlm.load` reads."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dlm.data import Example
from dlm.exclusive import alone
from dlm.options import integer, number
from dlm.training.batches import Batches
from dlm.training.loop import STATE, Progress, Recipe, Trainer


@dataclass(frozen=True, slots=True)
class Shape:
    """Size of a network with LLaDA's architecture."""

    width: int = 128
    layers: int = 4
    heads: int = 4
    mlp_width: int = 352
    max_length: int = 512  # positions
    rope_theta: float = 10000.0

    def __post_init__(self) -> None:
        for name in ("width", "layers", "heads", "mlp_width", "max_length"):
            integer(name, getattr(self, name), least=1)
        number("rope_theta", self.rope_theta, least=1.0)


def new_network(shape: Shape, tokenizer: Any, seed: int) -> Any:
    """A randomly initialised LLaDA network for the tokenizer's vocabulary."""
    from dlm.models.configs import LladaConfig
    from dlm.models.llada import LLaDAModelLM

    torch.manual_seed(seed)
    config = LladaConfig(
        d_model=shape.width,
        n_layers=shape.layers,
        n_heads=shape.heads,
        mlp_hidden_size=shape.mlp_width,
        max_sequence_length=shape.max_length,
        rope_theta=shape.rope_theta,
        vocab_size=len(tokenizer),
        weight_tying=True,
        mask_token_id=tokenizer.mask_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LLaDAModelLM(config)


def train(
    recipe: Recipe,
    network: Any,
    tokenizer: Any,
    out: Path,
    *,
    held_out: frozenset[str] = frozenset(),
    examples: Sequence[Example] = (),
    resume: bool = False,
    report: Callable[[Progress], None] = lambda progress: None,
) -> None:
    """Train a network and write it with its tokenizer to `out`, also when interrupted.

    Args:
        recipe: determines the result.
        network: the starting point, from `new_network` or loaded. It is trained in place, on its
            current device; with bfloat16 autocast on CUDA.
        tokenizer: fast tokenizer with mask, end-of-text and end-of-turn tokens.
        out: folder for the result, and for checkpoints on the way.
        held_out: prompts never to train on.
        examples: the user's own, for the task "file".
        resume: continue from the checkpoint in `out`.
        report: called after every step.

    Raises:
        ValueError: `out` holds a run and `resume` is not set, or the other way round; the run in
            it is a different one, is damaged or is still going; a row does not fit the network's
            positions; a launcher has started several processes.
    """
    check_processes()
    check_folder(out, resume)
    batches = Batches(
        tokenizer,
        recipe.tasks,
        tokens_per_batch=recipe.tokens_per_batch,
        max_extra=recipe.max_extra,
        seed=recipe.seed,
        held_out=held_out,
        examples=examples,
        max_length=getattr(network.config, "max_position_embeddings", None),
    )
    network.requires_grad_(True)
    with alone(out):
        check_folder(out, resume)  # again: another run may have started or ended in between
        trainer = Trainer(network, batches, recipe, mask_id=tokenizer.mask_token_id, out=out)
        if resume:
            trainer.resume()
        try:
            trainer.run(report)
        except KeyboardInterrupt:
            if (out / STATE).exists():  # the interrupt may have hit in the middle of a step
                trainer.resume()
                write(network, tokenizer, out)
            raise
        write(network, tokenizer, out)


def check_processes() -> None:
    """Refuse to train the same network once in each process of a launcher.

    Raises:
        ValueError: torchrun or another launcher has started several processes.
    """
    size = os.environ.get("WORLD_SIZE", "1")
    if size != "1":
        raise ValueError(f"training must be of one process, got WORLD_SIZE={size}")


def check_folder(out: Path, resume: bool) -> None:
    """Refuse a folder that does not go with `resume`, or whose model would be overwritten.

    Raises:
        ValueError: it holds a run that is not to be resumed, no run to resume, or a model that
            did not come from a run.
    """
    if not (resume or (out / STATE).exists()) and holds_model(out):
        raise ValueError(f"out={str(out)!r} holds a model already: choose another folder")
    if (out / STATE).exists() != resume:
        state = (
            "no run to resume" if resume else "a run already: resume it or choose another folder"
        )
        raise ValueError(f"out={str(out)!r} holds {state}")


def holds_model(folder: Path) -> bool:
    """Whether a folder has a network's configuration or weights in it."""
    return (folder / "config.json").exists() or any(folder.glob("*.safetensors"))


def write(network: Any, tokenizer: Any, out: Path) -> None:
    """Write the files that `dlm.load` reads."""
    network.save_pretrained(out)
    tokenizer.save_pretrained(out)
