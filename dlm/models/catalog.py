"""The published checkpoints that load, and what has been verified about each."""

from dataclasses import dataclass

LOGITS = "layout and logits against the official code on a small checkpoint"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One row of `dlm models`."""

    name: str  # what `dlm.load` takes
    family: str
    parameters: int
    licence: str
    verified: str


CHECKPOINTS = (
    Checkpoint("GSAI-ML/LLaDA-8B-Base", "llada", 8_015_581_184, "MIT", LOGITS),
    Checkpoint("GSAI-ML/LLaDA-8B-Instruct", "llada", 8_015_581_184, "MIT", LOGITS),
    Checkpoint("GSAI-ML/LLaDA-1.5", "llada", 8_015_581_184, "MIT", LOGITS),
)
