"""Trajectories of teacher and students, with the mistakes at every number of masks.

Shapes: B rows, G generated tokens, W positions of a block.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dlm.decoders.resample import apportion, fractions
from dlm.decoders.schedule import RANKS
from dlm.decoders.select import descending
from dlm.distill.schedule_ledger import Trajectory
from dlm.distill.schedule_states import Layout, Ranked
from dlm.job import generation_job
from dlm.settings import Settings
from dlm.traits import Traits
from dlm.types import StepView


@dataclass(frozen=True, slots=True)
class Plan:
    """How many tokens each forward pass of a block reveals, and the scale of its logits."""

    counts: tuple[int, ...]  # [N] n, for a full block
    scales: tuple[float, ...]  # [N] a

    @classmethod
    def plain(cls, counts: Sequence[int]) -> "Plan":
        """A plan without scaling."""
        return cls(tuple(counts), (1.0,) * len(counts))

    def of_block(self, size: int) -> list[tuple[int, float]]:
        """(n, a) of each forward pass of a block of `size` masks, as the decoder applies them."""
        return list(zip(apportion(fractions(self.counts), size), self.scales, strict=False))


@torch.inference_mode()
def teach(layout: Layout, base: str, rows: Sequence[int]) -> list[Trajectory]:
    """Decode prompts with the engine, one token per forward pass."""
    settings = Settings(
        decoder=base,
        gen_length=layout.gen_length,
        block_length=layout.block_length,
        stop_at_eos=False,
        row_keys=list(rows),
    )
    job = generation_job(layout.model, [layout.prompts[row] for row in rows], settings)
    begins = torch.tensor([[begin] for begin, _ in job.spans])
    order = torch.zeros(len(rows), layout.gen_length, dtype=torch.int64)
    ranked: list[Ranked] = []
    tokens = layout.blank(len(rows))
    for step in job.steps():
        view = step.view
        places = view.positions.cpu() - begins
        sequence = descending(scores(base, view), view.masked).cpu()
        ranked.append(Ranked(places.gather(1, sequence), view.sampled.cpu().gather(1, sequence)))
        line, column = step.decision.commit.cpu().nonzero(as_tuple=True)
        order[line, places[line, column]] = step.number
        tokens = torch.stack(
            [row[begin:end] for row, (begin, end) in zip(step.tokens.cpu(), job.spans, strict=True)]
        )
    if Traits.of(job.decoder).order_only:  # it measures only what it commits
        ranked = list(rankings(layout, base, rows, tokens, order))
    left = [size - n for size in layout.sizes for n in range(size)]
    wrong = [mistakes(each, tokens, masks) for each, masks in zip(ranked, left, strict=True)]
    return [
        Trajectory(tokens[row].tolist(), order[row].tolist(), [each[row] for each in wrong])
        for row in range(len(rows))
    ]


def rankings(
    layout: Layout, base: str, rows: Sequence[int], tokens: Tensor, order: Tensor
) -> Iterator[Ranked]:
    """The ranking at each state of trajectories with one token per forward pass."""
    blocks = [block for block, size in enumerate(layout.sizes) for _ in range(size)]
    for done, block in enumerate(blocks):
        spans = tokens.masked_fill(order >= done, layout.model.spec.mask_id)
        yield layout.rank(spans, rows, block, base)


def scores(base: str, view: StepView) -> Tensor:
    """The scores that a base policy ranks by, highest first."""
    field = RANKS[base]
    found = view.want(field)
    return -found if field in ("entropy", "positions") else found


def mistakes(ranked: Ranked, answer: Tensor, masks: int) -> list[list[int]]:
    """Each row's ranks below `masks` whose arg max is not the token of `answer`, int64 [B, G]."""
    width = min(masks, ranked.column.shape[1])
    columns = ranked.column[:, :width].clamp(max=answer.shape[1] - 1)
    bad = ranked.token[:, :width] != answer.gather(1, columns)
    return [row.nonzero()[:, 0].tolist() for row in bad]


@dataclass(frozen=True, slots=True)
class Student:
    """Decodes by a plan."""

    layout: Layout
    base: str
    plan: Plan
    ranks_scaled: bool  # whether the ranking sees the scales

    @torch.inference_mode()
    def play(self, rows: Sequence[int], answer: Tensor | None = None) -> list[Trajectory]:
        """Decode prompts by the plan; mistakes are counted only if answers are given.

        With the teacher's answers [B, G], a forward pass is also run after each token that the plan
        reveals together with others. So every number of masks is measured on a state of the
        student, at the cost of G forward passes.
        """
        layout = self.layout
        spans = layout.blank(len(rows))
        order = torch.zeros_like(spans)
        wrong: list[list[list[int]]] = []
        done = 0
        for block, size in enumerate(layout.sizes):
            end = done + size
            for count, factor in self.plan.of_block(size):
                scale = factor if self.ranks_scaled else 1.0
                ranked = layout.rank(spans, rows, block, self.base, scale)
                if answer is not None:
                    wrong.append(mistakes(ranked, answer, end - done))
                    for more in range(1, count):
                        between = layout.rank(
                            reveal(spans, ranked, more), rows, block, self.base, scale
                        )
                        wrong.append(mistakes(between, answer, end - done - more))
                order.scatter_(1, ranked.column[:, :count], done)
                spans = reveal(spans, ranked, count)
                done += count
        return [
            Trajectory(spans[row].tolist(), order[row].tolist(), [each[row] for each in wrong])
            for row in range(len(rows))
        ]


def reveal(spans: Tensor, ranked: Ranked, count: int) -> Tensor:
    """Spans [B, G] with the first `count` positions of the ranking filled in."""
    return spans.scatter(1, ranked.column[:, :count], ranked.token[:, :count])
