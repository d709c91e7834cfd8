"""Scoring of answers to many prompts in shared forward passes.

Shapes: R rows of all forward passes of a round, L tokens of the longest, C parts of n tokens after
one stem, S rows each of them requests, K tokens to score.
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
"""Forward passes that one group of questions should fill, about, so that few rows are left over."""
LENGTHS = 64
"""Number of answer lengths whose masks are cached: making them takes longer than a small network's
forward pass."""

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Likelihood:
    """The result for a prompt and its answer."""

    pair: int  # index of the pair
    log_likelihood: float  # estimate of ln p(answer | prompt), nats
    greedy: bool | None  # whether greedy decoding produces the answer; None if not requested


@dataclass(frozen=True, slots=True)
class Stem:
    """The context of answers, or parts of answers, of equal length."""

    before: Answer  # the prompt, and the answer's tokens before the part
    given: int  # tokens of the prompt
    length: int  # n, of the part

    @property
    def begin(self) -> int:
        """Tokens of the answer before the part."""
        return len(self.before) - self.given

    @property
    def end(self) -> int:
        """One past the part's last token."""
        return len(self.before) + self.length


@dataclass(frozen=True, slots=True)
class Found:
    """The result for a part."""

    log_likelihood: float  # nats
    best: bool  # whether it is a single token, and the most likely one


Part = tuple[Stem, Answer]
"""A stem and the tokens after it that are scored."""


def gathered(pairs: Sequence[tuple[list[int], list[int]]]) -> list[Question]:
    """Group pairs of a prompt and an answer by prompt and answer length, the longest first."""
    questions: dict[tuple[Answer, int], Question] = {}
    for number, (prompt, answer) in enumerate(pairs):
        name = (tuple(prompt), len(answer))
        question = questions.setdefault(name, Question(*name, {}))
        question.answers.setdefault(tuple(answer), []).append(number)
    return sorted(questions.values(), key=lambda each: -len(each.prompt) - each.length)


def blocks_of(spec: ModelSpec, given: int, length: int) -> list[tuple[int, int]]:
    """Start and end of each separately scored part of an answer that follows `given` tokens.

    For block-attention models the parts are blocks, each scored given those before it.
    """
    if spec.block_size is None:
        return [(0, length)]
    first = spec.block_size if spec.grid is None else spec.grid - given % spec.grid
    return [*pairwise([0, *range(first, length, spec.block_size), length])]


class Sheet:
    """The distinct rows that the parts after one stem request, and the tokens to score."""

    def __init__(self, stem: Stem, targets: Tensor, asks: Sequence[Ask], mask_id: int) -> None:
        """Lay out the requests of parts whose tokens are int64 [C, n]."""
        masked, scored = (torch.cat(each) for each in zip(*asks, strict=True))
        true = targets.repeat_interleave(len(scored) // len(targets), 0)
        self.stem, self.parts, self.shape = stem, len(asks), scored.shape
        self.spans, row = true.masked_fill(masked, mask_id).unique(dim=0, return_inverse=True)
        self.scored = scored.nonzero(as_tuple=True)
        line, place = self.scored
        each = torch.stack((row[line], place, true[line, place]))
        # int64 [3, K]: rows in ascending order, places in the span, tokens.
        self.wanted, self.index = each.unique(dim=1, return_inverse=True)

    def rows(self, spec: ModelSpec, width: int) -> Tensor:
        """The rows, padded to `width`; int64 [rows, width]."""
        count = len(self.spans)
        around = (torch.tensor(ids, dtype=torch.int64) for ids in (self.stem.before, spec.suffix))
        before, after = (ids.repeat(count, 1) for ids in around)
        whole = torch.cat((before, self.spans, after), 1)
        return pad(whole, (0, width - whole.shape[1]), value=spec.eos_id)

    def spread(self, found: Tensor) -> list[Tensor]:
        """Distribute scores [K] to the parts as each requested them: [S, n], 0 elsewhere."""
        out = torch.zeros(self.shape, dtype=found.dtype)
        return list(out.index_put(self.scored, found[self.index]).chunk(self.parts))


class Work:
    """The running estimates of the parts after one stem."""

    def __init__(
        self, stem: Stem, parts: Sequence[Answer], how: Estimator, draws: Callable[..., Draws]
    ) -> None:
        """Start the estimates of parts of n tokens."""
        self.stem = stem
        self.answers = parts
        self.targets = torch.tensor(parts)  # int64 [C, n]
        if stem.length == 1:  # all estimators agree: there is one row to score
            estimates = [chain(torch.zeros(1, 1, dtype=torch.int64), 1) for _ in parts]
        else:
            estimates = [how.estimate(stem.begin, stem.length, draws) for _ in parts]
        self.estimates = together(estimates)
        self.asks = next(self.estimates)
        self.best: list[bool] = [False] * len(parts)
        self.values: list[float] = []

    def go_on(self, sheet: Sheet, scores: Scores) -> None:
        """Feed the requested scores to the estimates."""
        if self.stem.length == 1:
            self.best = [bool(each) for each in sheet.spread(scores.best)]
        try:
            self.asks = self.estimates.send(sheet.spread(scores.log_probability))
        except StopIteration as end:
            self.values = end.value

    def found(self) -> Iterator[tuple[Part, Found]]:
        """The result for each part."""
        for answer, value, best in zip(self.answers, self.values, self.best, strict=True):
            yield (self.stem, answer), Found(value, best)


class Questions:
    """Scores answers to several prompts at a time."""

    def __init__(self, reader: Reader, estimator: Estimator, rows: int, *, greedy: bool) -> None:
        """Take what runs forward passes, the estimator, rows per pass, and the greedy flag."""
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
        """Split the questions, in order, into groups to work on together."""
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
        """The separately scored parts of an answer."""
        prompt = question.prompt
        return [
            (Stem((*prompt, *answer[:begin]), len(prompt), end - begin), answer[begin:end])
            for begin, end in blocks_of(self.model.spec, len(prompt), len(answer))
        ]

    def flags(
        self, questions: Sequence[Question], found: Mapping[Part, Found]
    ) -> list[Mapping[Answer, bool | None]]:
        """Whether greedy decoding produces each answer of each question; None if not requested.

        An answer of one token is produced if no token is likelier: the scored row is all that the
        decoder sees.
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
        """The result for every distinct part of every answer."""
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
        """The scores that each sheet requests, on the host."""
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
        """The scores for the requests in some rows, on the host.

        Args:
            tokens: int64 [R, L].
            layout: int64 [R, 4]: prompt length, start and end of the part, length of the row.
            wanted: int64 [3, K], rows in ascending order, columns and tokens.
            first: first row.
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
        """Results of `work(first, last)` for chunks that cover `count` rows.

        A chunk that does not fit in memory is halved, and so are all later ones: their rows are
        shorter, but finding out that a chunk does not fit takes long.
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
