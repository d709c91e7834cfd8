"""Joint sampling of a window under a constraint, and the marginals it leaves at each position.

Shapes: B rows, L canvas, W window, N measured columns, S states, C classes, V vocabulary.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dlm.canvas import Canvas
from dlm.constraints.automaton import Automaton
from dlm.constraints.chain import (
    Standing,
    backward,
    between,
    others,
    relative,
    walked,
    weighed,
)
from dlm.constraints.segments import Segments, chosen
from dlm.constraints.stack import Stack
from dlm.kernels import Bonus, NoiseKey, Suppressed, TokenStatistics, token_statistics
from dlm.places import Places
from dlm.progress import Progress
from dlm.tree import mapped, tensors

ROWS = 32  # rows of logits that are copied at a time


@dataclass(frozen=True, slots=True)
class Asked:
    """What a forward pass wants to know of the measured positions; see `token_statistics`."""

    wanted: Collection[str]
    law: str  # "model" or "sampling"
    draws: bool  # True samples tokens; False takes the most likely text
    filters: Mapping[str, Any]  # top-k, top-p and min-p for the sampling distribution, by name
    top: int
    scale: Tensor | None  # float32 [B]
    scale_statistics: bool
    bonus: Bonus | None


class Joint:
    """Samples all masked positions of a window jointly, and measures each under the constraint.

    Texts are drawn from prod_i p_i(x_i), restricted to those that the language accepts as a whole.
    Sampling goes left to right from p_i(v) b_{i+1}(d(q_i, v)), cut by top-k, top-p and min-p, with
    the exact race of `token_statistics`. Temperature 0 takes the most likely text. The decoder may
    commit any of the sampled tokens without the others: together they form a text of the language,
    so the tokens committed so far can always be completed.

    Statistics describe the marginal of a position over all accepted texts, p_i(v) w_i(v) / Z. A
    token that is the only one allowed has probability 1; a token that other positions rule out has
    probability 0. At a committed position, the sample is the committed token, and the statistics
    are those of the unconstrained distribution.
    """

    def __init__(
        self, automata: Sequence[Automaton], suppressed: Suppressed, *, cross_block: bool
    ) -> None:
        """Move the automata to the device.

        Args:
            automata: the languages, prepared by `without` tokens that are never sampled. The canvas
                says which of them each row uses.
            suppressed: tokens that are never sampled, on the device.
            cross_block: whether windows start at the start of the row.
        """
        members = Segments.stacked([one.by_class for one in automata])
        there = suppressed.mask.device
        self.automata = mapped(lambda part: part.to(there), Stack.of(automata))
        self.members = mapped(lambda part: part.to(there), members)
        self.suppressed = suppressed
        self.cross_block = cross_block

    @property
    def size(self) -> int:
        """Bytes of the automata."""
        return sum(part.nbytes for part in tensors((self.automata, self.members)))

    def statistics(
        self, logits: Tensor, canvas: Canvas, progress: Progress, places: Places, asked: Asked
    ) -> TokenStatistics:
        """Sample a token and compute statistics for each of the columns `places`, at least one.

        Args:
            logits: [N, V], float.
            canvas: the rows.
            progress: their decoding state.
            places: the measured columns; they include all masked ones.
            asked: what to sample and measure.
        """
        wide = logits.to(torch.float32, copy=True).masked_fill_(self.suppressed.mask, -torch.inf)
        if asked.bonus is not None:
            wide.scatter_add_(1, asked.bonus.tokens, asked.bonus.values)
        automata = self.automata.of_rows(canvas.language)
        standing = self.standing(automata, canvas, progress)
        scene = Scene(canvas, progress, places, asked, automata, standing)
        tokens = self.drawn(wide, scene)
        if asked.wanted or asked.top:
            self.restrict(wide, scene)
        return self.measured(wide, scene, tokens)

    def standing(self, automata: Stack, canvas: Canvas, progress: Progress) -> Standing:
        """The contents of the window, and the automaton state before it."""
        window, width = progress.window, progress.window.tokens.shape[1]
        first, device = window.positions[:, 0], canvas.tokens.device
        columns = torch.arange(1, width + 1, device=device)
        end = first + (window.blank * columns).amax(-1)
        blocks = 1 if self.cross_block else canvas.blanks.shape[1]
        before = canvas.start[:, None] + torch.arange((blocks - 1) * width, device=device)
        tokens = canvas.tokens.gather(1, before.clamp(max=canvas.tokens.shape[1] - 1))
        return Standing(
            inside=window.blank,
            open=window.masked,
            label=automata.class_of.gather(1, window.tokens),
            first=walked(automata, tokens, first - canvas.start),
            left=canvas.stop - end,
        )

    def drawn(self, wide: Tensor, scene: "Scene") -> Tensor:
        """Sample each place, int64 [N], so that all tokens together form a text of the language."""
        asked, automata, standing = scene.asked, scene.automata, scene.standing
        how = torch.logsumexp if asked.draws else torch.amax
        weights = self.weights(wide, scene, scene.temperature if asked.draws else None)
        after = backward(automata, between(automata, weights, how), standing, how)[:, 1:]
        there = scene.progress.window.tokens
        slot = scene.places.spread(torch.arange(len(wide), device=wide.device), there)
        assert slot is not None
        warmth = scene.temperature[:, None] if asked.draws else 1.0
        state, found = standing.first, []
        for column in range(there.shape[1]):
            behind = automata.behind(state)
            follows = relative(after[:, column].gather(1, behind)) * warmth
            law = wide[slot[:, column]] + follows.float().gather(1, automata.class_of)
            options = {**scene.drawing(column), **asked.filters} if asked.draws else {}
            token = token_statistics(law, (), suppressed=self.suppressed, **options).sampled
            token = torch.where(standing.open[:, column], token, there[:, column])
            reached = behind.gather(1, automata.class_of.gather(1, token[:, None]))[:, 0]
            state = torch.where(standing.inside[:, column], reached, state)
            found.append(token)
        return scene.places.take(torch.stack(found, 1))

    def weights(self, wide: Tensor, scene: "Scene", temperature: Tensor | None) -> Tensor:
        """The weight of each class at each column, float64 [B, W, C].

        Args:
            wide: [N, V], logits.
            scene: the forward pass.
            temperature: float32 [B]; None takes the most likely token of each class.
        """
        how = torch.amax if temperature is None else torch.logsumexp
        found = []
        for rows in scene.parts(len(wide)):
            part, row = wide[rows], scene.places.row[rows]
            if temperature is not None:
                part = part / temperature[row][:, None]
            members = self.members.of_rows(scene.canvas.language[row])
            found.append(members.reduce(part[:, None], how)[:, 0])
        masses = scene.places.spread(torch.cat(found), scene.standing.open)
        assert masses is not None
        return weighed(masses, scene.standing)

    def restrict(self, wide: Tensor, scene: "Scene") -> None:
        """Turn the logits of masked columns into those of their marginals over all texts."""
        temperature, standing = scene.scored, scene.standing
        weights = self.weights(wide, scene, temperature)
        around = relative(others(scene.automata, weights, standing))
        bias = (around * temperature[:, None, None]).masked_fill(~standing.open[..., None], 0.0)
        each = scene.places.take(bias.float())
        for rows in scene.parts(len(wide)):
            language = scene.canvas.language[scene.places.row[rows]]
            wide[rows] += each[rows].gather(1, chosen(self.automata.class_of, language))

    def measured(self, wide: Tensor, scene: "Scene", tokens: Tensor) -> TokenStatistics:
        """Statistics of the logits as they are now, with the samples `tokens`, int64 [N]."""
        asked = scene.asked
        options: dict[str, Any] = {"law": asked.law, "top": asked.top}
        if asked.law == "sampling":
            options |= asked.filters
        if asked.draws and asked.law == "sampling":
            options |= scene.drawing()
        elif asked.scale is not None:
            options["scale"] = asked.scale[scene.places.row]
        own = {"confidence", "token_probability"}
        wanted = set(asked.wanted)
        told = token_statistics(
            wide,
            (wanted - own) | ({"token_probability"} if wanted & own else set()),
            suppressed=self.suppressed,
            tokens=tokens,
            scale_statistics=asked.scale_statistics,
            **options,
        )
        found = told.token_probability
        confidence = found if "confidence" in wanted else None
        if found is not None:  # the mask token is never sampled
            found = found.masked_fill(scene.places.take(scene.standing.open), 0.0)
        of_tokens = found if "token_probability" in wanted else None
        return replace(told, sampled=tokens, confidence=confidence, token_probability=of_tokens)


@dataclass(frozen=True, slots=True)
class Scene:
    """One forward pass: what is asked, where, and the contents of the window."""

    canvas: Canvas
    progress: Progress
    places: Places
    asked: Asked
    automata: Stack  # of the rows
    standing: Standing

    def parts(self, count: int) -> Iterator[slice]:
        """Slices of `count` rows of logits, `ROWS` at a time."""
        return (slice(begin, begin + ROWS) for begin in range(0, count, ROWS))

    @property
    def temperature(self) -> Tensor:
        """Temperature at which tokens are sampled, float32 [B]."""
        scale, own = self.asked.scale, self.canvas.temperature
        return own if scale is None else own / scale

    @property
    def scored(self) -> Tensor:
        """Temperature of the distribution that the statistics describe, float32 [B]."""
        asked, own = self.asked, self.canvas.temperature
        if not (asked.draws and asked.law == "sampling"):
            own = torch.ones_like(own)
        return own if asked.scale is None or not asked.scale_statistics else own / asked.scale

    def drawing(self, column: int | None = None) -> dict[str, Any]:
        """Sampling options for `token_statistics`: for one column of all rows, or all places."""
        canvas, made, scale = self.canvas, self.progress.made, self.asked.scale
        seeds, keys, warmth = canvas.seed, canvas.row_key, canvas.temperature
        if column is None:
            row, position = self.places.row, self.places.position
            seeds, keys, made, warmth = (part[row] for part in (seeds, keys, made, warmth))
            scale = None if scale is None else scale[row]
        else:
            position = self.progress.window.positions[:, column]
        key = NoiseKey(seeds, keys, position, made)
        return {"temperature": warmth, "key": key, "scale": scale}
