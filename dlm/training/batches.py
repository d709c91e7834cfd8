"""Batches for supervised fine-tuning: a prompt that stays, a response to be masked.

Shapes: B rows, L tokens.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dlm.data import Example, generate_examples


@dataclass(frozen=True, slots=True)
class Batch:
    """Equal rows of prompt, response, end of turn and end-of-text padding."""

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
    """Close every response with one end of turn, then fill with end of text to a common length.

    The filling is content to be learned, as in LLaDA's fine-tuning: it is how the model says
    where a response ends inside a longer canvas. `extra` tokens of it go beyond the longest row.
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
        ValueError: the tokenizer has none.
    """
    found = tokenizer.get_vocab().get(token)
    if found is None:
        raise ValueError(f"the tokenizer must have a token {token!r}, and has none")
    return found


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
    ) -> None:
        """Set the sources up.

        Args:
            tokenizer: with a chat template, end-of-text and end-of-turn tokens.
            weights: share of the batches of each task.
            tokens_per_batch: rows times length, about.
            max_extra: most end-of-text tokens beyond the longest response.
            seed: with the step number, decides a batch.
            held_out: prompts that must never be trained on.
            examples: the user's own, task "file".
        """
        self.tokenizer = tokenizer
        self.weights = dict(weights)
        self.tokens_per_batch = tokens_per_batch
        self.max_extra = max_extra
        self.seed = seed
        self.held_out = held_out
        self.examples = [e for e in examples if e.prompt not in held_out]
        self.eot_id = token_id(tokenizer, "<|eot_id|>")
        self.eos_id = token_id(tokenizer, "<|endoftext|>")

    def __getitem__(self, step: int) -> Batch:
        rng = random.Random(f"{self.seed}/{step}")
        task = rng.choices(list(self.weights), list(self.weights.values()))[0]
        # Half of the batches end right behind the longest response: short canvases are cheap.
        extra = rng.choice((0, rng.randint(0, self.max_extra)))
        source = self._source(task, rng)
        prompts, responses = encode(self.tokenizer, [next(source) for _ in range(8)])
        length = extra + 1 + max(map(len, prompts)) + max(map(len, responses))
        rows = max(self.tokens_per_batch // length, 1)
        prompts, responses = encode(self.tokenizer, [next(source) for _ in range(rows)])
        return collate(
            task, prompts, responses, eot_id=self.eot_id, eos_id=self.eos_id, extra=extra
        )

    def _source(self, task: str, rng: random.Random) -> Iterator[Example]:
        if task == "file":
            return iter(lambda: rng.choice(self.examples), None)
        return generate_examples(task, rng.getrandbits(48), held_out=self.held_out)
