"""Compile an automaton over bytes into one over tokens: walk every token from every state.

Shapes: n pairs of a state and a trie node.
"""

from collections.abc import Collection

import torch
from torch import Tensor

from dlm.constraints.automaton import Arrows, Automaton
from dlm.constraints.language import ByteAutomaton
from dlm.constraints.vocabulary import Tree
from dlm.models.spec import ModelSpec


def compiled(language: ByteAutomaton, tree: Tree, spec: ModelSpec) -> Automaton:
    """The automaton over tokens that accepts the texts of a byte language.

    Raises:
        ValueError: it is too large.
    """
    arrows = walked(language, tree, {*spec.banned, *spec.stop_ids})
    ends = torch.cat((torch.tensor([language.start]), arrows.source, arrows.target))
    states, place = ends.unique(return_inverse=True)
    start, source, target = place.split((1, *[len(arrows.label)] * 2))
    return Automaton.of(
        Arrows(source, arrows.label, target), language.accepting[states], int(start), spec
    )


def walked(language: ByteAutomaton, tree: Tree, banned: Collection[int]) -> Arrows:
    """Transitions by tokens between the reachable states, without banned tokens.

    Pairs of a state and a trie node are followed byte by byte, as long as a complete text is still
    reachable. So a state that allows few bytes costs almost nothing.
    """
    live = language.live
    allowed = torch.ones(int(tree.tokens.max()) + 1, dtype=torch.bool)
    allowed[[token for token in banned if token < len(allowed)]] = False
    seen = torch.zeros_like(live)
    states = torch.tensor([language.start])
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    while len(states):
        seen[states] = True
        reached = torch.zeros_like(live)
        source, state, node = states, states, torch.zeros_like(states)
        while len(node):
            node, whose = tree.children.of(node)
            source, state = source[whose], language.following[state[whose], tree.byte[node]]
            going = live[state]
            source, state, node = source[going], state[going], node[going]
            place, whose = tree.ends.of(node)
            token = tree.tokens[place]
            kept = allowed[token]
            found.append((source[whose][kept], token[kept], state[whose][kept]))
            reached[found[-1][2]] = True
        states = (reached & ~seen).nonzero()[:, 0]
    return Arrows(*map(torch.cat, zip(*found, strict=True)))
