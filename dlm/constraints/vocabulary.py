"""Tokens as the bytes they add to a text, in a trie.

Shapes: M trie nodes, K tokens that spell bytes.
"""

import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

import torch
from torch import Tensor

from dlm.constraints.lists import Lists
from dlm.models.model import Model
from dlm.prompts import tokenizer_of
from dlm.reading import vocabulary_of
from dlm.spelling import as_bytes


@dataclass(frozen=True, slots=True, eq=False)
class Tree:
    """A trie over the bytes of a vocabulary's tokens; node 0 is the root."""

    byte: Tensor  # int64 [M], the last byte of each node's prefix
    children: Lists  # of each node
    ends: Lists  # tokens that end at each node, as indices into `tokens`
    tokens: Tensor  # int64 [K]
    digest: str  # of all token ids with their bytes


TREES: Final[weakref.WeakKeyDictionary[Any, Tree]] = weakref.WeakKeyDictionary()
"""The trie of each tokenizer read so far."""


def tree_of(model: Model) -> Tree:
    """The trie of a model's vocabulary, built once for each tokenizer.

    Raises:
        ValueError: the model has no tokenizer, or one whose tokens are not the bytes of their text.
    """
    tokenizer = tokenizer_of(model, "a constraint")
    found = TREES.get(tokenizer)
    if found is None:
        if not vocabulary_of(tokenizer).local:
            raise ValueError(
                "a constraint needs a byte-level tokenizer, whose tokens read alike wherever they "
                f"stand, got {type(tokenizer).__name__} of {model.spec.family}"
            )
        found = TREES.setdefault(tokenizer, read_tree(tokenizer))
    return found


def read_tree(tokenizer: Any) -> Tree:
    """Build the trie of a byte-level vocabulary."""
    parent, byte = [0], [0]
    known: dict[int, int] = {}
    tokens, ends = [], []
    digest = sha256()
    for token, spelled in spelled_tokens(tokenizer):
        digest.update(b"%d %d %b" % (token, len(spelled), spelled))
        node = 0
        for value in spelled:
            edge = node << 8 | value
            if edge not in known:
                known[edge] = len(parent)
                parent.append(node)
                byte.append(value)
            node = known[edge]
        tokens.append(token)
        ends.append(node)
    count = len(parent)
    above = torch.tensor(parent[1:], dtype=torch.int64)
    children = Lists.grouped(above, count)
    return Tree(
        torch.tensor(byte),
        Lists(children.numbers + 1, children.begin, children.count),
        Lists.grouped(torch.tensor(ends, dtype=torch.int64), count),
        torch.tensor(tokens, dtype=torch.int64),
        digest.hexdigest(),
    )


def spelled_tokens(tokenizer: Any) -> Iterator[tuple[int, bytes]]:
    """Yield the tokens that spell text with their bytes, by id; special tokens spell none."""
    silent = vocabulary_of(tokenizer).silent
    for name, token in sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1]):
        spelled = b"" if token in silent else as_bytes(name)
        if spelled:
            yield token, spelled
