"""Batches for supervised fine-tuning: prompts stay visible, responses are masked.

Shapes: B rows, L tokens.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import nlargest
from itertools import islice

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dlm.data import Example, generate_examples

SAMPLE = 256  # examples of each task whose lengths are checked before the first step


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of equal length: prompt, response, end of turn and end-of-text padding."""

    task: str
    tokens: Tensor  # int64 [B, L]
    maskable: Tensor  # bool [B, L], everything after the prompt


def encode(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]
) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids of the chat-formatted prompts and of the bare responses."""
    chats = [[{"role": "user", "content": example.prompt}] for example in examples]
    texts = tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
    prompts = tokenizer(texts, add_special_tokens=False)["input_ids"]
    responses = tokenizer([e.response for e in examples], add_special_tokens=False)["input_ids"]
    return prompts, responses


def collate(
    task: str,
    prompts: Sequence[list[int]],
    responses: Sequence[list[int]],
    *,
    eot_id: int,
    eos_id: int,
    extra: int,
) -> Batch:
    """Close every response with an end-of-turn token, then pad with end of text to one length.

    The padding is learned like the response, as in LLaDA's fine-tuning: it is how the model shows
    where a response ends on a longer canvas. The longest row gets `extra` tokens of it.
    """
    length = extra + max(len(p) + len(r) + 1 for p, r in zip(prompts, responses, strict=True))
    tokens = torch.full((len(prompts), length), eos_id)
    maskable = torch.ones((len(prompts), length), dtype=torch.bool)
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        line = [*prompt, *response, eot_id]
        tokens[row, : len(line)] = torch.tensor(line)
        maskable[row, : len(prompt)] = False
    return Batch(task, tokens, maskable)


def token_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    """The id of a token that training needs.

    Raises:
        ValueError: the tokenizer does not have it.
    """
    found = tokenizer.get_vocab().get(token)
    if found is None:
        raise ValueError(f"the tokenizer must have a token {token!r}, and has none")
    return found


def rows_within(budget: int, lengths: Sequence[int]) -> int:
    """How many rows, at least one, fit a token budget when padded to the longest of them.

    Args:
        budget: tokens.
        lengths: tokens of each row.
    """
    longest = 0
    for before, length in enumerate(lengths):
        longest = max(longest, length)
        if (before + 1) * longest > budget:
            return max(before, 1)
    return len(lengths)


class Batches:
    """The batch of every step, a pure function of the seed and the step number."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        weights: Mapping[str, float],
        *,
        tokens_per_batch: int,
        max_extra: int,
        seed: int,
        held_out: frozenset[str] = frozenset(),
        examples: Sequence[Example] = (),
        max_length: int | None = None,
    ) -> None:
        """Set up the sources of examples.

        Args:
            tokenizer: with a chat template, end-of-text and end-of-turn tokens.
            weights: share of the batches of each task.
            tokens_per_batch: most rows times length; a single row may exceed it.
            max_extra: most end-of-text tokens beyond the longest response.
            seed: determines each batch, together with the step number.
            held_out: prompts never to train on, regardless of surrounding white space.
            examples: the user's own, for the task "file".
            max_length: positions of the network; None if unlimited.

        Raises:
            ValueError: a row does not fit the positions, a token is missing, or the task "file" has
                no examples.
        """
        self.tokenizer = tokenizer
        self.weights = dict(weights)
        self.tokens_per_batch = tokens_per_batch
        self.max_extra = max_extra
        self.seed = seed
        # Chat templates strip prompts, so white space around one does not make it different.
        self.held_out = frozenset(prompt.strip() for prompt in held_out)
        self.examples = [e for e in examples if e.prompt.strip() not in self.held_out]
        if "file" in self.weights and not self.examples:
            raise ValueError("task 'file' needs examples that are not held out, got none")
        self.max_length = max_length
        self.eot_id = token_id(tokenizer, "<|eot_id|>")
        self.eos_id = token_id(tokenizer, "<|endoftext|>")
        if max_length is not None:
            self._check_lengths()

    def __getitem__(self, step: int) -> Batch:
        rng = random.Random(f"{self.seed}/{step}")
        task = rng.choices(list(self.weights), list(self.weights.values()))[0]
        # Half of the batches get no extra padding: short canvases are cheap.
        extra = rng.choice((0, rng.randint(0, self.max_extra)))
        source = self._source(task, rng)
        prompts, responses = encode(self.tokenizer, list(islice(source, 8)))
        length = extra + 1 + max(map(len, prompts)) + max(map(len, responses))
        rows = max(self.tokens_per_batch // length, 1)
        prompts, responses = self._rows(list(islice(source, rows)), extra)
        return collate(
            task, prompts, responses, eot_id=self.eot_id, eos_id=self.eos_id, extra=extra
        )

    def _rows(
        self, examples: Sequence[Example], extra: int
    ) -> tuple[list[list[int]], list[list[int]]]:
        """Token ids of as many examples as fit the budget; each must fit the positions."""
        prompts, responses = encode(self.tokenizer, examples)
        lengths = [len(p) + len(r) + 1 + extra for p, r in zip(prompts, responses, strict=True)]
        # The number of examples was estimated from eight, and these may be longer.
        rows = rows_within(self.tokens_per_batch, lengths)
        self._check(examples[:rows], lengths[:rows], extra)
        return prompts[:rows], responses[:rows]

    def _check_lengths(self) -> None:
        """Refuse rows that are too long before training: the longest own, a sample of others."""
        for task in self.weights:
            if task == "file":
                some = nlargest(SAMPLE, self.examples, lambda e: len(e.prompt) + len(e.response))
            else:
                some = list(islice(self._source(task, random.Random(self.seed)), SAMPLE))
            if some:
                pairs = zip(*encode(self.tokenizer, some), strict=True)
                lengths = [len(p) + len(r) + 1 + self.max_extra for p, r in pairs]
                self._check(some, lengths, self.max_extra)

    def _check(self, examples: Sequence[Example], lengths: Sequence[int], extra: int) -> None:
        """Refuse rows that do not fit the positions; `lengths` include the extra padding."""
        for example, length in zip(examples, lengths, strict=True):
            if self.max_length is not None and length > self.max_length:
                raise ValueError(
                    f"{example.where or f'task {example.task!r}'}: a row must fit the network's "
                    f"{self.max_length} positions, got {length - extra} tokens and {extra} of "
                    f"max_extra={self.max_extra}"
                )

    def _source(self, task: str, rng: random.Random) -> Iterator[Example]:
        if task == "file":
            return iter(lambda: rng.choice(self.examples), None)
        drawn = generate_examples(task, rng.getrandbits(48))
        return (each for each in drawn if each.prompt.strip() not in self.held_out)
