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

    For block-attention models (`model.spec.block_size`) the answer is scored as it is decoded,
    block by block, each given those before it.

    `monte_carlo`: mean over draws of (n / k) sum_masked ln p(y_i | y with k positions masked), k
    and the positions uniform (Nie et al. 2025, arXiv:2502.09992, eq. 6). The masked counts of a
    batch are stratified. Its expectation is a lower bound of the log-likelihood.

    `chain`: sum_j ln p(y_o(j) | y_o(<j)) along orders o of the answer, one token per forward pass,
    averaged over `samples` orders. With `order="random"` its expectation is the same bound. A
    fixed order gives the score of that order. `"confidence"` uses an order that the answer itself
    determines (the most confident true token first). Neither of these is a bound for the
    distribution that the model samples from.

    Args:
        model: the model, from `dlm.load`.
        prompt: one prompt, as in `generate`.
        answer: the text or token ids that follow the prompt.
        estimator: "monte_carlo", the default, or "chain".
        samples: draws or, for random chains, orders, for every block; 128 by default. Other chains
            need one.
        batch_size: draws that are stratified together, which is part of the estimate, and rows of
            a forward pass; 16 by default.
        order: of a chain: "random", the default, "left_to_right" or "confidence".
        cfg_scale: classifier-free guidance, as in `generate`.
        seed: of the masks and orders.

    Raises:
        ValueError: an option is invalid, or the prompt or the answer is empty.
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
    """Estimate ln p(answer | prompt), nats, of many pairs in shared forward passes.

    Each pair gets the value that `log_likelihood` gives it alone, as far as the network's logits of
    a row do not depend on the other rows: in float32, values differ by rounding at most.

    Rows of similar length are batched together, the longest first, and equal rows are computed
    once: an answer of n tokens takes at most 2**n - 1 rows whatever `samples` is, and answers of
    equal length to one prompt share the row in which they are fully masked. Answers of one token
    thus take one row per prompt.

    Args:
        model: the model, from `dlm.load`.
        pairs: prompts and answers, as in `log_likelihood`.
        rows: most rows of a forward pass, 16 by default; halved if they do not fit in memory.
        greedy: whether to test also if greedy decoding produces the answer, one most confident
            token per forward pass, block by block for block-attention models: LLaDA's
            `suffix_greedy_prediction`. For one token this is read from the same logits; otherwise
            rows are decoded until they differ from all of their answers. Off by default.
        estimator: as in `log_likelihood`, like the following.
        samples: draws or orders.
        batch_size: draws that are stratified together, which is part of the estimate.
        order: of a chain.
        cfg_scale: classifier-free guidance.
        seed: of the masks and orders.

    Returns:
        An iterator over the results, each as soon as it is known, in no fixed order: `.pair` is the
        index of its pair.

    Raises:
        ValueError: an option or a pair is invalid, raised at the call.
    """
    check_model(model)
    # On the CPU, where making masks and assembling rows does not wait for a GPU.
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
    """Check that this is a pair of a prompt and an answer; a text of two characters is not."""
    both = listed(pair)
    if isinstance(both, str) or not isinstance(both, Sequence) or len(both) != 2:
        raise ValueError(f"pairs must hold a prompt and an answer each, got {pair!r}")
    return both[0], both[1]


def encode_pair(
    model: Model, prompt: Prompt, answer: str | list[int]
) -> tuple[list[int], list[int]]:
    """Token ids of a prompt and its answer.

    Raises:
        ValueError: one is empty, they do not fit the model, or the answer contains the mask or
            unused ids.
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
    """Token ids of an answer, without the special tokens that a tokenizer adds around a text."""
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
