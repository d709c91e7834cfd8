"""Tests whether greedy decoding produces given answers, for many prompts at once.

Shapes: B rows of the batch, L tokens of the longest, P answers to all prompts, n tokens of the
longest of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dlm.batch import Change
from dlm.job import make_job
from dlm.models.model import Model
from dlm.runtime import Step
from dlm.settings import Settings

Answer = tuple[int, ...]
"""Token ids."""


@dataclass(frozen=True, slots=True)
class Question:
    """Answers of equal length to one prompt."""

    prompt: Answer
    length: int  # tokens of each answer
    answers: dict[Answer, list[int]]  # to the indices of the pairs with this answer


def are_greedy(
    model: Model, questions: Sequence[Question], cfg_scale: float
) -> list[dict[Answer, bool]]:
    """For every answer, whether greedy decoding of that many masks produces it.

    One most confident token per forward pass, over the whole span, or block by block for
    block-attention models: LLaDA's `suffix_greedy_prediction` (arXiv:2502.09992). A row is dropped
    as soon as it differs from all of its answers.

    Raises:
        ValueError: the network returned NaN.
    """
    options = {"block_length": None, "cfg_scale": cfg_scale, "stop_at_eos": False}
    settings = Settings.of({"decoder": "low_confidence", **options})
    masks = [[model.spec.mask_id] * question.length for question in questions]
    rows = [[*q.prompt, *m, *model.spec.suffix] for q, m in zip(questions, masks, strict=True)]
    job = make_job(model, rows, [(0, len(row)) for row in rows], settings)
    watch = Watch(questions, model.spec.mask_id)
    for step in job.steps(lambda: Change(leave=watch.over)):
        watch.see(step)
    return watch.found(questions)


class Watch:
    """Compares rows with the answers they may still produce."""

    def __init__(self, questions: Sequence[Question], mask_id: int) -> None:
        """Take the questions of the rows, in order."""
        listed = [(row, q, a) for row, q in enumerate(questions) for a in q.answers]
        width = max(question.length for question in questions)
        self.mask_id = mask_id
        self.count = len(questions)
        self.row = torch.tensor([row for row, _, _ in listed])  # int64 [P]
        spans = [[*answer, *[mask_id] * (width - len(answer))] for _, _, answer in listed]
        self.target = torch.tensor(spans)  # int64 [P, n]
        self.inside = self.target != mask_id  # bool [P, n]: no answer holds a mask
        start = torch.tensor([len(question.prompt) for _, question, _ in listed])
        self.place = start[:, None] + torch.arange(width)  # int64 [P, n]
        self.agrees = torch.ones(len(listed), dtype=torch.bool)

    @property
    def over(self) -> frozenset[int]:
        """Rows that differ from all of their answers."""
        return frozenset(range(self.count)).difference(self.row[self.agrees].tolist())

    def see(self, step: Step) -> None:
        """Compare the tokens after a forward pass."""
        tokens = step.tokens.cpu()
        line = torch.full((self.count,), -1)
        line[list(step.names)] = torch.arange(len(step.names))
        line = line[self.row]  # of each answer; -1 for rows that have left, which were compared
        written = tokens[line].gather(1, self.place.clamp(max=tokens.shape[1] - 1))
        differs = (written != self.target) & (written != self.mask_id) & self.inside
        self.agrees &= (line < 0) | ~differs.any(-1)

    def found(self, questions: Sequence[Question]) -> list[dict[Answer, bool]]:
        """The result for every answer."""
        flags = iter(self.agrees.tolist())
        return [{answer: next(flags) for answer in question.answers} for question in questions]
