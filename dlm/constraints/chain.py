"""Forward-backward sums over all completions of a window that a language accepts.

A row is a chain: a token of class c leads from state q to state d(q, c). A text weighs the product
over its positions of m_i(c), the total weight of the tokens of class c at position i. Summed over
the texts that the language accepts,

    b_i(q) = sum_c m_i(c) b_{i+1}(d(q, c))        continuations from state q before position i
    a_{i+1}(r) = sum_{d(q, c) = r} a_i(q) m_i(c)  prefixes that reach state r after position i
    w_i(c) = sum_q a_i(q) b_{i+1}(d(q, c))        weight of class c at i by all other positions

(Rabiner 1989, the forward and backward passes). Everything is computed in logarithms, so that texts
the model deems nearly impossible still compare correctly where the language allows nothing else.
With the maximum instead of the sum, b_i belongs to the most likely text (Viterbi 1967; Suresh et
al. 2025, DINGO, arXiv:2505.23061).

Shapes: B rows, W window, S states, C classes, P pairs of states, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from dlm.constraints.segments import Reduce, laid_out
from dlm.constraints.stack import Stack

TOGETHER = 64  # tokens composed at once, each a map over all states


@dataclass(frozen=True, slots=True)
class Standing:
    """The contents of the active window of each row."""

    inside: Tensor  # bool [B, W], columns of the generated text
    open: Tensor  # bool [B, W], columns that are still masked
    label: Tensor  # int64 [B, W], token class of the other columns
    first: Tensor  # int64 [B], state before the window
    left: Tensor  # int64 [B], positions after the window, all masked


def weighed(masses: Tensor, standing: Standing) -> Tensor:
    """The weight of each class at each column, float64 [B, W, C].

    At a column that holds a token, only the class of that token has weight.

    Args:
        masses: [B, W, C], read at masked columns.
        standing: contents of the window.
    """
    labels = torch.arange(masses.shape[-1], device=masses.device)
    own = torch.where(labels == standing.label[..., None], 0.0, -torch.inf)
    return torch.where(standing.open[..., None], masses.double(), own.double())


def between(automata: Stack, weights: Tensor, how: Reduce) -> Tensor:
    """The weight of each pair of states at each column, float64 [B, W, P].

    Args:
        automata: of the rows.
        weights: from `weighed`.
        how: `torch.logsumexp` or `torch.amax`.
    """
    return automata.by_pair.reduce(weights, how, automata.label)


def backward(automata: Stack, pairs: Tensor, standing: Standing, how: Reduce) -> Tensor:
    """b_0 .. b_W, float64 [B, W + 1, S].

    After the window, a state counts if a text can be completed in the rest of the row.

    Args:
        automata: of the rows.
        pairs: from `between`.
        standing: contents of the window.
        how: as for `between`.
    """
    reached = automata.left <= standing.left[:, None]
    after = torch.where(reached, 0.0, -torch.inf).double()
    found = [after]
    for column in range(pairs.shape[1] - 1, -1, -1):
        taken = pairs[:, column] + after.gather(1, automata.target)
        before = automata.by_source.reduce(taken[:, None], how)[:, 0]
        after = torch.where(standing.inside[:, column, None], before, after)
        found.append(after)
    return torch.stack(found[::-1], 1)


def forward(automata: Stack, pairs: Tensor, standing: Standing) -> Tensor:
    """a_0 .. a_{W-1}, float64 [B, W, S]; arguments as for `backward`."""
    states = torch.arange(automata.left.shape[1], device=pairs.device)
    before = torch.where(states == standing.first[:, None], 0.0, -torch.inf).double()
    found = []
    for column in range(pairs.shape[1]):
        found.append(before)
        taken = before.gather(1, automata.source) + pairs[:, column]
        behind = automata.by_target.reduce(taken[:, None], torch.logsumexp)[:, 0]
        before = torch.where(standing.inside[:, column, None], behind, before)
    return torch.stack(found, 1)


def others(automata: Stack, weights: Tensor, standing: Standing) -> Tensor:
    """w_0 .. w_{W-1}, float64 [B, W, C], from the weights of `weighed`."""
    pairs = between(automata, weights, torch.logsumexp)
    before = forward(automata, pairs, standing)
    after = backward(automata, pairs, standing, torch.logsumexp)[:, 1:]
    around = laid_out(before, automata.source) + laid_out(after, automata.target)
    return automata.by_label.reduce(around, torch.logsumexp, automata.pair)


def relative(weights: Tensor) -> Tensor:
    """Log weights [..., C] relative to the largest, so that a uniform constraint adds 0."""
    most = weights.amax(-1, keepdim=True)
    return weights - most.masked_fill(most == -torch.inf, 0.0)


def walked(automata: Stack, tokens: Tensor, count: Tensor) -> Tensor:
    """The state after the first `count` tokens of each row, int64 [B].

    Each token is a map from states to states. The maps are composed pairwise in a logarithmic
    number of rounds, `TOGETHER` tokens at a time.

    Args:
        automata: of the rows.
        tokens: int64 [B, n].
        count: int64 [B].
    """
    same = torch.arange(automata.left.shape[1], device=tokens.device)
    place = torch.arange(tokens.shape[1], device=tokens.device)
    state = automata.start
    for some, at in zip(tokens.split(TOGETHER, 1), place.split(TOGETHER), strict=True):
        maps = torch.where((at < count[:, None])[..., None], automata.maps(some), same)
        while maps.shape[1] > 1:
            if maps.shape[1] % 2:
                maps = torch.cat((maps, same.expand(len(maps), 1, -1)), 1)
            maps = maps[:, 1::2].gather(-1, maps[:, ::2])
        if maps.shape[1]:
            state = maps[:, 0].gather(1, state[:, None])[:, 0]
    return state
