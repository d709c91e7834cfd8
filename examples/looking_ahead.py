"""Write a decoder that looks ahead: several ways on from here, and the forward that tells which.

    python examples/looking_ahead.py --ways 2 4

Each forward commits the most confident position and tries another one in each of some branches. The
next evaluates them all, and the row goes on with the one whose rest is surest, two tokens further.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

import dlm
from dlm.decoders.base import Stateless
from dlm.decoders.select import rank, top
from dlm.types import Decision, StepView

PROMPT = "Compute: 60/5, 14*7, 30+14, 50/5"


@dataclass(frozen=True, slots=True)
class Ways(Stateless):
    """Try each of the next best positions, and keep the one after which the rest is surest."""

    branches: int = 4
    paper: ClassVar[str] = "none"
    needs: ClassVar[frozenset[str]] = frozenset({"confidence"})

    def choose(self, state: None, view: StepView) -> Tensor:
        """Of views [B, C, W] the branch with the highest mean confidence of its masks, [B]."""
        confidence = view.want("confidence").double().masked_fill(~view.masked, 0.0)
        return (confidence.sum(-1) / view.masked.sum(-1).clamp(min=1)).argmax(-1)

    def step(self, state: None, view: StepView) -> tuple[None, Decision]:
        """The best position, and in branch b the b-th best of the others."""
        scores = view.want("confidence")
        commit = top(scores, view.masked, view.quota)
        rest = view.masked & ~commit
        branch = torch.arange(self.branches, device=scores.device)[:, None]
        tries = rest[:, None] & (rank(scores, rest)[:, None] == branch)
        return None, Decision(commit, lookahead=tries)


def main(given: Sequence[str] | None = None) -> None:
    """Decode with it."""
    parser = argparse.ArgumentParser(description="Decode with a decoder that looks ahead.")
    parser.add_argument("--ways", type=int, nargs="*", default=[2, 4])
    model, chat = dlm.load(), [{"role": "user", "content": PROMPT}]
    for ways in parser.parse_args(given).ways:
        out = dlm.generate(model, chat, decoder=Ways(ways), gen_length=40)
        print(f"{ways} ways: {out.forwards[0]} forwards: {(out.texts or ['?'])[0]}")


if __name__ == "__main__":
    main()
