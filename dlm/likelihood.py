"""Log-likelihood of an answer given a prompt."""

import math
from collections.abc import Iterable, Iterator, Sequence

import torch

from dlm.estimators import Estimator, run
from dlm.given import listed
from dlm.models.model import Model
from dlm.options import boolean, integer, integers, names_checked, writable
from dlm.prompts import Prompt, check_model, encode_prompts
from dlm.questions import Likelihood, Questions, blocks_of
from dlm.scoring import Reader, Scorer


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

    Where attention is in blocks (`model.spec.block_size`) the answer is scored block by block, as
    it is decoded, each given those before.

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
        batch_size: draws that are stratified together, which is part of the estimate, and rows of
            one forward.
        order: of a chain: "random", "left_to_right" or "confidence".
        cfg_scale: classifier-free guidance, as in `generate`.
        seed: of the masks and orders.

    Raises:
        ValueError: a bad option, or an empty prompt or answer.
    """
    check_model(model)
    how = Estimator(estimator, samples, batch_size, order, seed, model.device)
    reader = Reader(model, cfg_scale)
    given, target = encode_pair(model, prompt, answer)
    score = 0.0
    for begin, end in blocks_of(model.spec, len(given), len(target)):
        scorer = Scorer(reader, given, target[:end], begin, how.batch_size)
        score += run(how.estimate(begin, end - begin), scorer.scores)
    if math.isnan(score):
        raise ValueError("the network returned NaN or infinite logits")
    return score


@names_checked
def log_likelihoods(  # noqa: PLR0913 (the estimator's own knobs)
    model: Model,
    pairs: Sequence[tuple[Prompt, str | list[int]]],
    *,
    rows: int = 16,
    greedy: bool = False,
    estimator: str = "monte_carlo",
    samples: int = 128,
    batch_size: int = 16,
    order: str = "random",
    cfg_scale: float = 0.0,
    seed: int = 0,
) -> Iterator[Likelihood]:
    """Estimate ln p(answer | prompt), nats, of many pairs in shared forwards.

    Each has the value that `log_likelihood` gives it alone, as far as the network's logits of a row
    do not depend on the rows beside it; at most by rounding in float32. Rows of like lengths are
    put together, the longest first, and equal rows are computed once: an answer of n tokens takes
    at most 2**n - 1 whatever `samples` is, and answers of one length to one prompt share the row
    that has all of them masked. So answers of one token take one row a prompt.

    Args:
        model: what `dlm.load` gave.
        pairs: prompts and answers, as in `log_likelihood`.
        rows: of one forward, at most; halved where they take more memory than there is.
        greedy: whether to tell also if greedy decoding writes the answer, one most confident token
            a forward, block by block where attention is in blocks: LLaDA's
            `suffix_greedy_prediction`. For one token it is read from the same logits; else rows are
            decoded until they differ from every answer of theirs.
        estimator: as in `log_likelihood`, and so are the others.
        samples: draws or orders.
        batch_size: draws that are stratified together, which is part of the estimate.
        order: of a chain.
        cfg_scale: classifier-free guidance.
        seed: of the masks and orders.

    Returns:
        One for each pair as soon as it is known, in another order: `.pair` is its index.

    Raises:
        ValueError: a bad option or pair, when called.
    """
    check_model(model)
    # Masks are made, and rows put together, where that waits for no device.
    how = Estimator(estimator, samples, batch_size, order, seed, torch.device("cpu"))
    integer("rows", rows, least=1)
    boolean("greedy", greedy)
    reader = Reader(model, cfg_scale)
    given = listed(pairs)
    if isinstance(given, str | torch.Tensor) or not isinstance(given, Iterable):
        raise ValueError(f"pairs must be a list of prompts and answers, got {pairs!r}")
    encoded = [encode_pair(model, *checked_pair(pair)) for pair in given]
    return Questions(reader, how, rows, greedy=greedy).answer(encoded)


def checked_pair(pair: object) -> tuple[Prompt, str | list[int]]:
    """A prompt and an answer, if it is that: a text of two characters is none."""
    both = listed(pair)
    if isinstance(both, str) or not isinstance(both, Sequence) or len(both) != 2:
        raise ValueError(f"pairs must hold a prompt and an answer each, got {pair!r}")
    return both[0], both[1]


def encode_pair(
    model: Model, prompt: Prompt, answer: str | list[int]
) -> tuple[list[int], list[int]]:
    """Token ids of a prompt and its answer.

    Raises:
        ValueError: one is empty, they do not fit the model, or the answer holds what is no text.
    """
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
    return rows[0], target


def encode_answer(model: Model, answer: str | list[int]) -> list[int]:
    """Token ids of an answer, without the tokens a tokenizer puts around a text."""
    if not isinstance(answer, str):
        ids = integers("answer", listed(answer), least=0, most=model.spec.vocab_size - 1)
    elif model.tokenizer is None:
        raise ValueError("a text answer needs a tokenizer and this model has none: give token ids")
    else:
        text = writable(answer, "answer")
        ids = list(model.tokenizer(text, add_special_tokens=False)["input_ids"])
    if not ids:
        raise ValueError(f"answer must hold at least one token, got {answer!r}")
    return ids
