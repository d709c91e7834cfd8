"""Fit the logit scales of a plan: match the student's distributions to the teacher's.

Shapes: B rows, G generated tokens, W positions of a block, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from dlm.distill.schedule_ledger import Trajectory
from dlm.distill.schedule_rollout import Plan
from dlm.distill.schedule_scale import Alignment
from dlm.distill.schedule_states import Layout

DRAWS = 4  # perturbed teacher states, besides the unperturbed one
VALUES = 1 << 26  # most logits kept for the fit of one forward pass, over all prompts and blocks


@dataclass(frozen=True, slots=True)
class Fit:
    """The fitted scale of one forward pass."""

    scale: float  # 1 if the best scale was rejected
    rejected: bool  # whether the best scale was outside the allowed range
    before: float  # mean KL per position at scale 1, nats
    after: float  # mean KL per position at `scale`, nats


@dataclass(frozen=True, slots=True)
class Aligner:
    """Pairs each state of a student with the teacher's state that has equally many masks."""

    layout: Layout
    students: Sequence[Trajectory]
    teachers: Sequence[Trajectory]
    flips: int  # most positions perturbed in a teacher state; 0 for none
    seed: int
    batch_size: int

    @torch.inference_mode()
    def fit(self, plan: Plan, report: Callable[[int, int], None]) -> list[Fit]:
        """Fit the scale of each forward pass, over all prompts and blocks."""
        found = []
        steps = len(plan.counts)
        report(0, steps)
        for forward in range(steps):
            whole = Alignment.join(list(self.parts(plan, forward)))
            best = whole.fit()
            scale = 1.0 if best is None else best
            found.append(Fit(scale, best is None, whole.loss(1.0), whole.loss(scale)))
            report(forward + 1, steps)
        return found

    def parts(self, plan: Plan, forward: int) -> Iterator[Alignment]:
        """What to align at one forward pass of every block, batch by batch."""
        sizes = self.layout.sizes
        places = [
            (block, sum(sizes[:block]) + sum(count for count, _ in steps[:forward]))
            for block, steps in enumerate(map(plan.of_block, sizes))
            if forward < len(steps)
        ]
        total = len(self.students)
        share = shares(max(1, VALUES // self.layout.model.spec.vocab_size), total * len(places))
        for begin in range(0, total, self.batch_size):
            batch = range(begin, min(begin + self.batch_size, total))
            for number, (block, done) in enumerate(places):
                most = {row: share[number * total + row] for row in batch}
                rows = [row for row in batch if most[row]]
                if rows:
                    yield self.part(rows, block, done, forward, [most[row] for row in rows])

    def part(
        self, rows: Sequence[int], block: int, done: int, forward: int, most: Sequence[int]
    ) -> Alignment:
        """Align positions that student and teacher both have masked, at most `most` [B] per row.

        The choice of positions depends only on the row and its limit, not on the rest of the batch.
        """
        layout = self.layout
        kept = ~layout.suppressed
        spans = self.spans(self.students, rows, done)
        logits = layout.logits(spans, rows, block)[..., kept]
        open_ = self.open(spans, block)
        least = torch.full((len(rows),), torch.inf, dtype=torch.float64)
        teacher, both = torch.zeros_like(logits), torch.zeros_like(open_)
        for states in self.states(rows, block, done, forward):
            shared = open_ & self.open(states, block)
            told = layout.logits(states, rows, block)[..., kept]
            loss = self.losses(logits, told, shared)
            better = loss < least
            least = torch.where(better, loss, least)
            choose = better.to(logits.device)[:, None, None]
            teacher = torch.where(choose, told, teacher)
            both = torch.where(better[:, None], shared, both)
        for line, (number, limit) in enumerate(zip(rows, most, strict=True)):
            both[line] = thinned(both[line], limit, number)
        row, column = both.to(logits.device).nonzero(as_tuple=True)
        return Alignment.of(logits[row, column], teacher[row, column])

    def losses(self, logits: Tensor, told: Tensor, shared: Tensor) -> Tensor:
        """Mean KL of each row at scale 1, float64 [B]; inf if no position is shared."""
        row, column = shared.to(logits.device).nonzero(as_tuple=True)
        each = Alignment.of(logits[row, column], told[row, column]).divergence(1.0).cpu()
        total = torch.zeros(len(shared), dtype=torch.float64).index_add_(0, row.cpu(), each)
        count = shared.sum(-1)
        return torch.where(count > 0, total / count.clamp(min=1), torch.inf)

    def states(self, rows: Sequence[int], block: int, done: int, forward: int) -> Iterator[Tensor]:
        """Teacher states to compare with, int64 [B, G]: its own, then perturbed ones if relaxed."""
        spans = self.spans(self.teachers, rows, done)
        yield spans
        begin, size = sum(self.layout.sizes[:block]), self.layout.sizes[block]
        mask_id = self.layout.model.spec.mask_id
        for draw in range(DRAWS if self.flips else 0):
            near = spans.clone()
            for line, row in enumerate(rows):
                chance = Random(f"{self.seed}/{row}/{block}/{forward}/{draw}")
                for column in chance.sample(range(begin, begin + size), min(self.flips, size)):
                    hidden = int(near[line, column]) == mask_id
                    token = self.teachers[row].tokens[column] if hidden else mask_id
                    near[line, column] = token
            yield near

    def spans(self, of: Sequence[Trajectory], rows: Sequence[int], done: int) -> Tensor:
        """The generated tokens of some trajectories after `done` commits, int64 [B, G]."""
        tokens = torch.tensor([of[row].tokens for row in rows])
        order = torch.tensor([of[row].order for row in rows])
        return tokens.masked_fill(order >= done, self.layout.model.spec.mask_id)

    def open(self, spans: Tensor, block: int) -> Tensor:
        """Which positions of a block are masked, bool [B, W]."""
        begin, size = sum(self.layout.sizes[:block]), self.layout.sizes[block]
        return spans[:, begin : begin + size] == self.layout.model.spec.mask_id


def shares(total: int, count: int) -> list[int]:
    """Split `total` into `count` ints, as evenly as possible, with the larger ones spread out."""
    return [(each + 1) * total // count - each * total // count for each in range(count)]


def thinned(flags: Tensor, most: int, row: int) -> Tensor:
    """Keep at most `most` flags of bool [W], evenly spaced; the offset depends on the row."""
    places = flags.nonzero()[:, 0]
    if len(places) <= most:
        return flags
    phase = row * 618 % 1000  # in 1/1000: multiples of the golden ratio spread evenly over rows
    picked = [(each * 1000 + phase) * len(places) // (most * 1000) for each in range(most)]
    found = torch.zeros_like(flags)
    found[places[picked]] = True
    return found
