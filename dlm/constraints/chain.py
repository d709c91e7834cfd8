"""Sums over all texts of a language that what stands on the canvas may become.

A row is a chain: a token of class c leads from state q to d(q, c). With m_i(c) what the tokens of
class c weigh at position i, of texts that the language takes, weighed by the product over
positions,

    b_i(q) = sum_c m_i(c) b_{i+1}(d(q, c))        what may follow from q in front of position i
    a_{i+1}(r) = sum_{d(q, c) = r} a_i(q) m_i(c)  what may have led to r behind it
    w_i(c) = sum_q a_i(q) b_{i+1}(d(q, c))        what all other positions say of c at i

(Rabiner 1989, the forward and backward pass), all in logarithms: a text that the model thinks
impossible is still weighed against others, where nothing else is allowed. With the largest in
place of the sum b_i is that of the likeliest text (Viterbi 1967; Suresh et al. 2025, DINGO,
arXiv:2505.23061).

Shapes: B rows, W window, S states, C classes, P pairs of states, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from dlm.constraints.segments import Reduce, laid_out
from dlm.constraints.stack import Stack

TOGETHER = 64  # tokens, each a number for every state


@dataclass(frozen=True, slots=True)
class Standing:
    """What stands in a window."""

    inside: Tensor  # bool [B, W], columns of what is generated
    open: Tensor  # bool [B, W], those without a token
    label: Tensor  # int64 [B, W], class of the token of others
    first: Tensor  # int64 [B], state in front of the window
    left: Tensor  # int64 [B], positions behind the window, all open


def weighed(masses: Tensor, standing: Standing) -> Tensor:
    """What each class weighs at each column, [B, W, C]; where a token stands, its own alone.

    Args:
        masses: [B, W, C], of open columns. What comes of them is float64.
        standing: in the window.
    """
    labels = torch.arange(masses.shape[-1], device=masses.device)
    own = torch.where(labels == standing.label[..., None], 0.0, -torch.inf)
    return torch.where(standing.open[..., None], masses.double(), own.double())


def between(automata: Stack, weights: Tensor, how: Reduce) -> Tensor:
    """What leads from one state to another at each column, float64 [B, W, P].

    Args:
        automata: of the rows.
        weights: `weighed`.
        how: `torch.logsumexp` or `torch.amax`.
    """
    return automata.by_pair.reduce(weights, how, automata.label)


def backward(automata: Stack, pairs: Tensor, standing: Standing, how: Reduce) -> Tensor:
    """b_0 .. b_W, float64 [B, W + 1, S].

    Behind the window it counts that a text can be ended in what is left of the row.

    Args:
        automata: of the rows.
        pairs: `between`.
        standing: in the window.
        how: as of `between`.
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
    """a_0 .. a_{W-1}, float64 [B, W, S]; the arguments are those of `backward`."""
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
    """w_0 .. w_{W-1}, float64 [B, W, C], of `weighed` ones."""
    pairs = between(automata, weights, torch.logsumexp)
    before = forward(automata, pairs, standing)
    after = backward(automata, pairs, standing, torch.logsumexp)[:, 1:]
    around = laid_out(before, automata.source) + laid_out(after, automata.target)
    return automata.by_label.reduce(around, torch.logsumexp, automata.pair)


def relative(weights: Tensor) -> Tensor:
    """Logarithms of weights [..., C] against the largest, so that what changes nothing is 0."""
    most = weights.amax(-1, keepdim=True)
    return weights - most.masked_fill(most == -torch.inf, 0.0)


def walked(automata: Stack, tokens: Tensor, count: Tensor) -> Tensor:
    """The state behind the first `count` of some tokens, int64 [B].

    A token is a function of states; neighbours are put together, in as many rounds as there are
    doublings, some at a time.

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
