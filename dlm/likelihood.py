"""Log-likelihood of an answer given a prompt.

Shapes: B rows of one forward, L prompt plus answer, n answer tokens.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from dlm.kernels import NoiseKey, token_statistics, uniform
from dlm.models.model import Model, causal_context
from dlm.options import integer, integers, known, names_checked, number, writable
from dlm.prompts import Prompt, encode_prompts
from dlm.settings import LARGEST_SCALE

ESTIMATORS = ("monte_carlo", "chain")
ORDERS = ("random", "left_to_right", "confidence")


@names_checked
@torch.inference_mode()
def log_likelihood(  # noqa: PLR0913 (the estimator's own knobs)
    model: Model,
    prompt: Prompt,
    answer: str | list[int],
    *,
    estimator: str = "monte_carlo",
    samples: int = 128,
    batch_size: int = 16,
    order: str = "random",
    cfg_scale: float = 0.0,
    seed: int = 0,
) -> float:
    """Estimate ln p(answer | prompt), nats.

    Where all before a block is causal (`model.spec.causal`) the answer is scored block by block, as
    it would be decoded, each given those before.

    `monte_carlo`: mean over draws of (n / k) sum_masked ln p(y_i | y with k positions masked), k
    and the positions uniform (Nie et al. 2025, arXiv:2502.09992, eq. 6). The masked counts of a
    batch are stratified. Its expectation is a lower bound of the log-likelihood.

    `chain`: sum_j ln p(y_o(j) | y_o(<j)) along orders o of the answer, one token a forward,
    averaged over `samples` orders. With `order="random"` its expectation is the same bound. A
    fixed order gives the score of that order, and `"confidence"` (the most confident true token
    first) an order chosen by the answer itself: neither is a bound of what the model samples from.

    Args:
        model: what `dlm.load` gave.
        prompt: one prompt, as in `generate`.
        answer: text or token ids that follow it.
        estimator: "monte_carlo" or "chain".
        samples: draws or, for random chains, orders, of every block. Other chains need one.
        batch_size: rows of one forward.
        order: of a chain: "random", "left_to_right" or "confidence".
        cfg_scale: classifier-free guidance, as in `generate`.
        seed: of the masks and orders.

    Raises:
        ValueError: a bad option, or an empty prompt or answer.
    """
    known("estimator", estimator, ESTIMATORS)
    known("order", order, ORDERS)
    if estimator != "chain" and order != "random":
        raise ValueError(f"order is for estimator='chain', got order={order!r} with {estimator!r}")
    integer("samples", samples, least=1)
    integer("batch_size", batch_size, least=1)
    number("cfg_scale", cfg_scale, least=-1.0, most=LARGEST_SCALE)
    integer("seed", seed, least=-(1 << 63), most=(1 << 64) - 1)
    rows = encode_prompts(model, prompt)
    if len(rows) != 1:
        raise ValueError(f"log_likelihood takes one prompt, got {len(rows)}")
    target = encode_answer(model, answer)
    length = len(rows[0]) + len(target) + len(model.spec.suffix)
    if length > model.spec.max_length:
        raise ValueError(
            f"prompt and answer must fit the model's {model.spec.max_length} positions, "
            f"got {length} tokens"
        )
    banned = set(model.spec.banned) & set(target)
    if banned:
        raise ValueError(f"answer must not hold the mask or unused ids, got {sorted(banned)}")
    score = 0.0
    for begin, end in blocks_of(model, len(target)):
        scorer = Scorer(model, rows[0], target[:end], cfg_scale, seed, begin)
        if estimator == "monte_carlo":
            score += scorer.monte_carlo(samples, batch_size)
        elif order == "random":
            score += scorer.random_chains(samples, batch_size)
        elif order == "left_to_right":
            score += scorer.left_to_right(batch_size)
        else:
            score += scorer.confidence_chain()
    if math.isnan(score):
        raise ValueError("the network returned NaN or infinite logits")
    return score


def blocks_of(model: Model, length: int) -> list[tuple[int, int]]:
    """Where the parts of an answer that are scored by themselves begin and end."""
    size = (model.spec.block_size if model.spec.causal else None) or length
    return [(begin, min(begin + size, length)) for begin in range(0, length, size)]


def encode_answer(model: Model, answer: str | list[int]) -> list[int]:
    """Token ids of an answer, without the tokens a tokenizer puts around a text."""
    if not isinstance(answer, str):
        ids = integers("answer", answer, least=0, most=model.spec.vocab_size - 1)
    elif model.tokenizer is None:
        raise ValueError("a text answer needs a tokenizer and this model has none: give token ids")
    else:
        text = writable(answer, "answer")
        ids = list(model.tokenizer(text, add_special_tokens=False)["input_ids"])
    if not ids:
        raise ValueError(f"answer must hold at least one token, got {answer!r}")
    return ids


def stratified_counts(offset: int, rows: int, length: int) -> Tensor:
    """Masked counts of a batch, evenly spread over 1..n from a random offset. int64 [B].

    k_j = (round(offset + j n / B) - 1) mod n + 1: over a full sweep of `offset` in 1..n every
    count appears equally often.
    """
    # In doubled integers, so that halves round alike for every offset.
    spread = torch.arange(rows) * (2 * length)
    rounded = (2 * rows * offset + spread + rows) // (2 * rows)
    return (rounded - 1) % length + 1


class Scorer:
    """Scores of one prompt and the end of an answer."""

    def __init__(
        self,
        model: Model,
        prompt: list[int],
        answer: list[int],
        cfg_scale: float,
        seed: int,
        begin: int = 0,
    ) -> None:
        """Take an answer, and from which of its tokens on it is scored."""
        self.model = model
        self.cfg_scale = cfg_scale
        self.seed = seed
        self.row = torch.tensor([*prompt, *answer, *model.spec.suffix], device=model.device)
        self.given = len(prompt)
        self.begin = begin
        self.start = self.given + begin
        self.length = len(answer) - begin
        self.end = self.start + self.length
        self.answer = self.row[self.start : self.end]
        self.banned = torch.zeros(model.spec.vocab_size, dtype=torch.bool, device=model.device)
        self.banned[torch.tensor(model.spec.banned, device=model.device)] = True
        self.seen: Tensor | None = None  # bool [1, L, L], where the family does not tell
        if model.spec.causal:
            columns = torch.arange(len(self.row), device=model.device)[None]
            span = (torch.tensor([at], device=model.device) for at in (self.start, self.end))
            self.seen = causal_context(columns, columns, *span)

    def token_log_probabilities(self, masked: Tensor, scored: Tensor) -> Tensor:
        """Score true tokens: ln p where scored, 0 elsewhere; float32 [B, n].

        Args:
            masked: bool [B, n], what the network does not see.
            scored: bool [B, n], which of them to score.
        """
        rows = self.row.repeat(masked.shape[0], 1)
        rows[:, self.start : self.end].masked_fill_(masked, self.model.spec.mask_id)
        positions = torch.arange(rows.shape[1], device=rows.device)[None]
        line, column = scored.nonzero(as_tuple=True)
        hidden = self.model.hidden(rows, positions, None, attend=self.seen)
        logits = self.model.logits(hidden[line, column + self.start])
        if self.cfg_scale:
            rows[:, : self.given] = self.model.spec.mask_id
            rows[:, self.end :] = self.model.spec.mask_id
            hidden = self.model.hidden(rows, positions, None, attend=self.seen)
            free = self.model.logits(hidden[line, column + self.start])
            logits = free + (self.cfg_scale + 1) * (logits - free)
        found = token_statistics(
            logits,
            {"token_log_probability"},
            suppressed=self.banned,
            tokens=self.answer[column],
        ).token_log_probability
        assert found is not None
        out = torch.zeros(scored.shape, dtype=found.dtype, device=found.device)
        return out.index_put((line, column), found)

    def noise(self, draw: Tensor) -> Tensor:
        """Independent uniforms for each answer position of each draw. float32 [B, n]."""
        rows, length = draw.numel(), self.length
        key = NoiseKey(
            self.seed,
            torch.zeros(rows * length, dtype=torch.int64, device=draw.device),
            torch.arange(self.begin, self.begin + length, device=draw.device).repeat(rows),
            draw.repeat_interleave(length),
        )
        return uniform(key).view(rows, length)

    def monte_carlo(self, samples: int, batch_size: int) -> float:
        """The stratified bound."""
        total = 0.0
        for first in range(0, samples, batch_size):
            rows = min(batch_size, samples - first)
            draw = torch.arange(first, first + rows, device=self.row.device)
            noise = self.noise(draw)
            # The last position's noise of an extra draw decides the offset of the batch.
            pick = self.noise(torch.tensor([samples + first], device=self.row.device))
            offset = min(int(pick[0, -1] * self.length) + 1, self.length)
            count = stratified_counts(offset, rows, self.length).to(noise.device)
            masked = noise.argsort(-1).argsort(-1) < count[:, None]
            score = self.token_log_probabilities(masked, masked).double().sum(-1)
            total += float((score * self.length / count).sum())
        return total / samples

    def chain(self, rank: Tensor, batch_size: int) -> float:
        """Mean over orders of the chain rule along each. `rank` int64 [orders, n]."""
        pairs = [(o, step) for o in range(rank.shape[0]) for step in range(self.length)]
        total = 0.0
        for chunk in chunks(pairs, batch_size):
            orders, steps = (torch.tensor(x, device=rank.device) for x in zip(*chunk, strict=True))
            ranks = rank[orders]
            now = ranks == steps[:, None]
            total += float(
                self.token_log_probabilities(ranks >= steps[:, None], now).double().sum()
            )
        return total / rank.shape[0]

    def random_chains(self, samples: int, batch_size: int) -> float:
        """Uniform orders."""
        noise = self.noise(torch.arange(samples, device=self.row.device))
        return self.chain(noise.argsort(-1).argsort(-1), batch_size)

    def left_to_right(self, batch_size: int) -> float:
        """The autoregressive order."""
        return self.chain(torch.arange(self.length, device=self.row.device)[None], batch_size)

    def confidence_chain(self) -> float:
        """The most confident true token first."""
        masked = torch.ones(1, self.length, dtype=torch.bool, device=self.row.device)
        total = 0.0
        for _ in range(self.length):
            scores = self.token_log_probabilities(masked, masked)
            best = scores.masked_fill(~masked, -math.inf).argmax(-1)
            total += float(scores[0, best[0]])
            masked[0, best[0]] = False
        return total


def chunks(items: list[tuple[int, int]], size: int) -> Iterator[list[tuple[int, int]]]:
    """Consecutive pieces of at most `size`."""
    for first in range(0, len(items), size):
        yield items[first : first + size]
