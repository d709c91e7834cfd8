"""Answers to many prompts, scored in shared forwards.

Shapes: R rows of all forwards of a round, L tokens of the longest, C parts of n tokens behind one
stem, S rows each of them asks for, K tokens to score.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import accumulate, pairwise
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from dlm.estimators import Ask, Draws, Estimator, chain, together
from dlm.greedy import Answer, Question, are_greedy
from dlm.host import send
from dlm.inferring import inferring
from dlm.models.spec import ModelSpec
from dlm.scoring import Reader, ScoredRows, Scores

FORWARDS = 8
"""Of questions worked on together, about, so that few have rows to spare."""
LENGTHS = 64
"""Of answers whose masks are kept: they take longer to make than a small network's forward."""

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Likelihood:
    """What became of a prompt and its answer."""

    pair: int  # its index
    log_likelihood: float  # estimate of ln p(answer | prompt), nats
    greedy: bool | None  # whether greedy decoding writes the answer; None where nobody asked


@dataclass(frozen=True, slots=True)
class Stem:
    """What answers, or parts of them, of one length follow."""

    before: Answer  # the prompt, and the tokens of the answer in front of the part
    given: int  # tokens of the prompt
    length: int  # n, of the part

    @property
    def begin(self) -> int:
        """Tokens of the answer in front of the part."""
        return len(self.before) - self.given

    @property
    def end(self) -> int:
        """One past the part's last token."""
        return len(self.before) + self.length


@dataclass(frozen=True, slots=True)
class Found:
    """What became of a part."""

    log_likelihood: float  # nats
    best: bool  # whether it is one token, and none is likelier


Part = tuple[Stem, Answer]
"""A stem and the tokens behind it that are scored."""


def gathered(pairs: Sequence[tuple[list[int], list[int]]]) -> list[Question]:
    """Pairs of a prompt and an answer by prompt and length of the answer, the longest first."""
    questions: dict[tuple[Answer, int], Question] = {}
    for number, (prompt, answer) in enumerate(pairs):
        name = (tuple(prompt), len(answer))
        question = questions.setdefault(name, Question(*name, {}))
        question.answers.setdefault(tuple(answer), []).append(number)
    return sorted(questions.values(), key=lambda each: -len(each.prompt) - each.length)


def blocks_of(spec: ModelSpec, given: int, length: int) -> list[tuple[int, int]]:
    """Where the parts of an answer behind `given` tokens begin and end that are scored apart.

    Where attention is in blocks each is decoded given those before it.
    """
    if spec.block_size is None:
        return [(0, length)]
    first = spec.block_size if spec.grid is None else spec.grid - given % spec.grid
    return [*pairwise([0, *range(first, length, spec.block_size), length])]


class Sheet:
    """The rows that parts behind one stem ask for, each of them once, with the tokens to score."""

    def __init__(self, stem: Stem, targets: Tensor, asks: Sequence[Ask], mask_id: int) -> None:
        """Lay out what parts ask for, whose tokens are int64 [C, n]."""
        masked, scored = (torch.cat(each) for each in zip(*asks, strict=True))
        true = targets.repeat_interleave(len(scored) // len(targets), 0)
        self.stem, self.parts, self.shape = stem, len(asks), scored.shape
        self.spans, row = true.masked_fill(masked, mask_id).unique(dim=0, return_inverse=True)
        self.scored = scored.nonzero(as_tuple=True)
        line, place = self.scored
        each = torch.stack((row[line], place, true[line, place]))
        # int64 [3, K]: rows in rising order, places in the span, tokens.
        self.wanted, self.index = each.unique(dim=1, return_inverse=True)

    def rows(self, spec: ModelSpec, width: int) -> Tensor:
        """The rows, padded to a width; int64 [rows, width]."""
        count = len(self.spans)
        around = (torch.tensor(ids, dtype=torch.int64) for ids in (self.stem.before, spec.suffix))
        before, after = (ids.repeat(count, 1) for ids in around)
        whole = torch.cat((before, self.spans, after), 1)
        return pad(whole, (0, width - whole.shape[1]), value=spec.eos_id)

    def spread(self, found: Tensor) -> list[Tensor]:
        """What was found of the tokens to score, [K], as each part asked: [S, n], 0 elsewhere."""
        out = torch.zeros(self.shape, dtype=found.dtype)
        return list(out.index_put(self.scored, found[self.index]).chunk(self.parts))


class Work:
    """The parts behind one stem, on their way."""

    def __init__(
        self, stem: Stem, parts: Sequence[Answer], how: Estimator, draws: Callable[..., Draws]
    ) -> None:
        """Begin the estimates of parts of n tokens."""
        self.stem = stem
        self.answers = parts
        self.targets = torch.tensor(parts)  # int64 [C, n]
        if stem.length == 1:  # any estimator's: there is one row to ask for
            estimates = [chain(torch.zeros(1, 1, dtype=torch.int64), 1) for _ in parts]
        else:
            estimates = [how.estimate(stem.begin, stem.length, draws) for _ in parts]
        self.estimates = together(estimates)
        self.asks = next(self.estimates)
        self.best: list[bool] = [False] * len(parts)
        self.values: list[float] = []

    def go_on(self, sheet: Sheet, scores: Scores) -> None:
        """Take what was asked for."""
        if self.stem.length == 1:
            self.best = [bool(each) for each in sheet.spread(scores.best)]
        try:
            self.asks = self.estimates.send(sheet.spread(scores.log_probability))
        except StopIteration as end:
            self.values = end.value

    def found(self) -> Iterator[tuple[Part, Found]]:
        """What became of each part."""
        for answer, value, best in zip(self.answers, self.values, self.best, strict=True):
            yield (self.stem, answer), Found(value, best)


class Questions:
    """Scores answers, those to several prompts at a time."""

    def __init__(self, reader: Reader, estimator: Estimator, rows: int, *, greedy: bool) -> None:
        """Take what makes forwards, the estimate, rows of a forward, and what else is asked."""
        self.reader = reader
        self.model = reader.model
        self.estimator = estimator
        self.draws = lru_cache(maxsize=LENGTHS)(estimator.draws)
        self.most = rows
        self.greedy = greedy

    @inferring
    def answer(self, pairs: Sequence[tuple[list[int], list[int]]]) -> Iterator[Likelihood]:
        """The likelihood of every pair of a prompt and an answer.

        Raises:
            ValueError: the network returned NaN.
        """
        for questions in self.groups(gathered(pairs)):
            found = self.found(questions)
            flags = self.flags(questions, found)
            for question, greedy in zip(questions, flags, strict=True):
                for answer, numbers in question.answers.items():
                    parts = self.parts(question, answer)
                    value = sum((found[part].log_likelihood for part in parts), 0.0)
                    if math.isnan(value):
                        raise ValueError("the network returned NaN or infinite logits")
                    for number in numbers:
                        yield Likelihood(number, value, greedy[answer])

    def groups(self, questions: Sequence[Question]) -> Iterator[list[Question]]:
        """Questions to work on together, in their order."""
        group: list[Question] = []
        rows = 0
        for question in questions:
            group.append(question)
            rows += len(question.answers) * self.estimator.rows(question.length)
            if len(group) >= self.most or rows >= FORWARDS * self.most:
                yield group
                group, rows = [], 0
        if group:
            yield group

    def parts(self, question: Question, answer: Answer) -> list[Part]:
        """An answer in the parts that are scored by themselves."""
        prompt = question.prompt
        return [
            (Stem((*prompt, *answer[:begin]), len(prompt), end - begin), answer[begin:end])
            for begin, end in blocks_of(self.model.spec, len(prompt), len(answer))
        ]

    def flags(
        self, questions: Sequence[Question], found: Mapping[Part, Found]
    ) -> list[Mapping[Answer, bool | None]]:
        """Whether greedy decoding writes the answers of each question; None where nobody asks.

        One token is what it writes if none is likelier: the row that was scored is all it sees.
        """
        if not self.greedy:
            return [dict.fromkeys(question.answers) for question in questions]
        longer = [question for question in questions if question.length > 1]
        scale = self.reader.cfg_scale
        decode = self.in_pieces(
            len(longer), lambda a, b: are_greedy(self.model, longer[a:b], scale)
        )
        decoded = iter([each for piece in decode for each in piece])
        return [
            next(decoded)
            if question.length > 1
            else {a: found[self.parts(question, a)[0]].best for a in question.answers}
            for question in questions
        ]

    def found(self, questions: Sequence[Question]) -> dict[Part, Found]:
        """What becomes of every part of every answer, each once."""
        behind: dict[Stem, dict[Answer, None]] = {}
        for question in questions:
            for answer in question.answers:
                for stem, part in self.parts(question, answer):
                    behind.setdefault(stem, {})[part] = None
        stems = sorted(behind, key=lambda stem: -stem.end)
        works = [Work(stem, list(behind[stem]), self.estimator, self.draws) for stem in stems]
        while going := [work for work in works if not work.values]:
            sheets = [Sheet(w.stem, w.targets, w.asks, self.model.spec.mask_id) for w in going]
            for work, sheet, scores in zip(going, sheets, self.read(sheets), strict=True):
                work.go_on(sheet, scores)
        return {part: found for work in works for part, found in work.found()}

    def read(self, sheets: Sequence[Sheet]) -> list[Scores]:
        """The scores of what each sheet wants, on the host."""
        spec = self.model.spec
        ends = [(s.stem.given, len(s.stem.before), s.stem.end) for s in sheets]
        counts = [len(sheet.spans) for sheet in sheets]
        length = [end + len(spec.suffix) for _, _, end in ends]
        tokens = torch.cat([sheet.rows(spec, max(length)) for sheet in sheets])
        layout = torch.tensor([(*e, n) for e, n in zip(ends, length, strict=True)])
        layout = layout.repeat_interleave(torch.tensor(counts), 0)
        above = accumulate(counts[:-1], initial=0)
        moved = [(first, start, 0) for first, (_, start, _) in zip(above, ends, strict=True)]
        wanted = torch.cat(
            [s.wanted + torch.tensor(by)[:, None] for s, by in zip(sheets, moved, strict=True)], 1
        )
        pieces = self.in_pieces(len(tokens), partial(self.forward, tokens, layout, wanted))
        each = [sheet.wanted.shape[1] for sheet in sheets]
        log_probability = torch.cat([piece.log_probability for piece in pieces]).split(each)
        best = torch.cat([piece.best for piece in pieces]).split(each)
        return [Scores(*found) for found in zip(log_probability, best, strict=True)]

    def forward(
        self, tokens: Tensor, layout: Tensor, wanted: Tensor, first: int, last: int
    ) -> Scores:
        """The scores of what is wanted of some rows, on the host.

        Args:
            tokens: int64 [R, L].
            layout: int64 [R, 4], tokens of the prompt, begin and end of the part, and of the row.
            wanted: int64 [3, K], rows in rising order, columns and tokens.
            first: row to begin with.
            last: one past the last row.
        """
        edges = torch.searchsorted(wanted[0].contiguous(), torch.tensor([first, last]))
        line, column, token = wanted[:, slice(*edges.tolist())]
        given, start, end, length = layout[first:last].unbind(1)
        width = int(length.max())
        padded = int(length.min()) < width
        bring = partial(send, device=self.model.device)
        rows = ScoredRows(
            tokens=bring(tokens[first:last, :width]),
            given=bring(given),
            start=bring(start),
            end=bring(end),
            length=bring(length) if padded else None,
        )
        found = self.reader(rows, bring(line - first), bring(column), bring(token))
        return Scores(found.log_probability.cpu(), found.best.cpu())

    def in_pieces(self, count: int, work: Callable[[int, int], Result]) -> list[Result]:
        """What `work(first, last)` gives for pieces of so many rows.

        Pieces are halved where they take more memory than there is, and stay so: rows to come are
        shorter, but what does not fit is long in finding out.
        """
        made: list[Result] = []
        first = 0
        while first < count:
            last = min(first + self.most, count)
            try:
                made.append(work(first, last))
                first = last
            except torch.OutOfMemoryError:
                if last - first == 1:
                    raise
                self.most = (last - first) // 2
        return made
