"""Write a decoder: a frozen dataclass that says which masked positions take their token now.

    python examples/custom_decoder.py --width 3

This one commits confident positions, but none within `width` of a more confident one: neighbours
depend on each other most, and a forward predicts them as if they did not.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import dlm
from dlm.decoders.select import at_least
from dlm.types import Decision, StepView

PROMPT = "Compute: 60/5, 14*7, 30+14, 50/5"


@dataclass(frozen=True, slots=True)
class Apart:
    """Commit positions with p(sampled) >= `threshold` that lead all others within `width`."""

    threshold: float = 0.5
    width: int = 2
    paper: ClassVar[str] = "none"
    needs: ClassVar[frozenset[str]] = frozenset({"confidence"})  # what `step` reads
    mutates_committed: ClassVar[bool] = False  # it only commits

    def init_state(self, batch: int, length: int) -> None:
        """Nothing is carried from one forward to the next."""

    def step(self, state: None, view: StepView) -> tuple[None, Decision]:
        """All leaders that are confident, and as many of the others as `steps` asks for."""
        scores = view.want("confidence").masked_fill(~view.masked, -1.0)
        near = scores
        for shift in range(1, self.width + 1):  # where both ends meet does no harm
            near = near.maximum(scores.roll(shift, -1)).maximum(scores.roll(-shift, -1))
        lead = view.masked & (scores >= near) & (scores >= self.threshold)
        return None, Decision(commit=at_least(lead, scores, view.masked, view.quota))


def main(given: Sequence[str] | None = None) -> None:
    """Decode with it, at several widths."""
    parser = argparse.ArgumentParser(description="Decode with a decoder of your own.")
    parser.add_argument("--width", type=int, nargs="*", default=[0, 1, 3])
    model = dlm.load()
    for width in parser.parse_args(given).width:
        chat = [{"role": "user", "content": PROMPT}]
        out = dlm.generate(model, chat, decoder=Apart(width=width), gen_length=40)
        assert out.texts is not None
        print(f"width {width}: {out.forwards[0]} forwards: {out.texts[0]}")


if __name__ == "__main__":
    main()
