"""Tokens drawn together under a constraint, and what it leaves of every position's distribution.

Shapes: B rows, L canvas, W window, N columns measured, S states, C classes, V vocabulary.
"""

from collections.abc import Collection, Iterator, Mapping
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
from dlm.kernels import Bonus, NoiseKey, TokenStatistics, token_statistics
from dlm.places import Places
from dlm.progress import Progress
from dlm.tree import mapped

ROWS = 32  # of logits that are laid out anew at a time
APART = 1 << 31
"""Between the numbers of forwards that draw tokens and classes: more than any row takes."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a forward asks of the positions it measures, in the words of `token_statistics`."""

    wanted: Collection[str]
    law: str  # "model" or "sampling"
    draws: bool  # whether tokens are drawn, rather than those of the likeliest text taken
    filters: Mapping[str, Any]  # what cuts the law that tokens are drawn from, by its name
    top: int
    scale: Tensor | None  # float32 [B]
    scale_statistics: bool
    bonus: Bonus | None


class Joint:
    """Draws all open positions of a window together, and measures each under the constraint.

    Texts are drawn from prod_i p_i(x_i), restricted to those that the language takes as a whole:
    from left to right from p_i(v) b_{i+1}(d(q_i, v)), first a class of tokens and then one of it,
    each by the exact race of `token_statistics`. Where top-k, top-p or min-p cut that distribution
    tokens are drawn one by one. T = 0 takes the likeliest text. Any of its tokens may be written
    without the others, as those make a text of the language with it.

    Statistics are of the distribution of a position over all such texts, p_i(v) w_i(v) / Z: where
    nothing else may stand a token is certain, and what another position rules out is impossible.
    Where a token stands it is given: it is what is sampled there, and measured by the model's law.
    """

    def __init__(self, automaton: Automaton, suppressed: Tensor, *, cross_block: bool) -> None:
        """Take the language `without` tokens never sampled, these, and whether windows reach back.

        Args:
            automaton: the language.
            suppressed: bool [V], on the device.
            cross_block: whether windows begin where the row does.
        """
        self.automaton = mapped(lambda part: part.to(suppressed.device), automaton)
        self.suppressed = suppressed
        self.cross_block = cross_block

    def statistics(
        self, logits: Tensor, canvas: Canvas, progress: Progress, places: Places, asked: Asked
    ) -> TokenStatistics:
        """A token and statistics for each of the columns `places`, at least one.

        Args:
            logits: [N, V], float.
            canvas: the rows.
            progress: where they stand.
            places: the columns that were measured; all that are open are.
            asked: what to draw and measure.
        """
        wide = logits.to(torch.float32, copy=True).masked_fill_(self.suppressed, -torch.inf)
        if asked.bonus is not None:
            wide.scatter_add_(1, asked.bonus.tokens, asked.bonus.values)
        scene = Scene(canvas, progress, places, asked, self.standing(canvas, progress))
        tokens = self.drawn(wide, scene)
        if asked.wanted or asked.top:
            self.restrict(wide, scene)
        return self.measured(wide, scene, tokens)

    def standing(self, canvas: Canvas, progress: Progress) -> Standing:
        """What stands in the window and in front of it."""
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
            label=self.automaton.class_of[window.tokens],
            first=walked(self.automaton, tokens, first - canvas.start),
            left=canvas.stop - end,
        )

    def drawn(self, wide: Tensor, scene: "Scene") -> Tensor:
        """What is sampled at each place, int64 [N]: of a text of the language with what stands."""
        asked, how = scene.asked, torch.logsumexp if scene.asked.draws else torch.amax
        temperature = scene.temperature if asked.draws else None
        weights = self.weights(wide, scene, temperature)
        pairs = between(self.automaton, weights, how)
        after = backward(self.automaton, pairs, scene.standing, how)[:, 1:]
        if asked.draws and asked.filters:
            return self.by_tokens(wide, scene, after)
        tokens = self.within(wide, scene, self.by_classes(weights, scene, after))
        return scene.given(tokens)

    def weights(self, wide: Tensor, scene: "Scene", temperature: Tensor | None) -> Tensor:
        """What each class weighs at each column, float64 [B, W, C]; its likeliest token for None.

        Args:
            wide: [N, V], logits.
            scene: the window.
            temperature: float32 [B].
        """
        found = []
        for rows in scene.parts(len(wide)):
            part = wide[rows]
            if temperature is not None:
                part = part / temperature[scene.places.row[rows]][:, None]
            how = torch.amax if temperature is None else torch.logsumexp
            found.append(self.automaton.by_class.reduce(part, how))
        masses = scene.places.spread(torch.cat(found), scene.standing.open)
        assert masses is not None
        return weighed(masses, scene.standing)

    def by_classes(self, weights: Tensor, scene: "Scene", after: Tensor) -> Tensor:
        """The class of a token at each column, int64 [B, W]."""
        automaton, standing = self.automaton, scene.standing
        options: dict[str, Any] = {"temperature": 1.0} if scene.asked.draws else {}
        state, found = standing.first, []
        for column in range(weights.shape[1]):
            behind = automaton.following[state]
            law = relative(weights[:, column] + after[:, column].gather(1, behind))
            if scene.asked.draws:
                options["key"] = scene.key(column, apart=True)
            label = token_statistics(law.float(), (), **options).sampled
            found.append(label)
            reached = behind.gather(1, label[:, None])[:, 0]
            state = torch.where(standing.inside[:, column], reached, state)
        return torch.stack(found, 1)

    def within(self, wide: Tensor, scene: "Scene", labels: Tensor) -> Tensor:
        """A token of the class at each place, int64 [N]."""
        chosen, found = scene.places.take(labels), []
        for rows in scene.parts(len(wide)):
            law = wide[rows].masked_fill(self.automaton.class_of != chosen[rows, None], -torch.inf)
            options = scene.drawing(rows) if scene.asked.draws else {}
            drawn = token_statistics(law, (), suppressed=self.suppressed, **options)
            found.append(drawn.sampled)
        return torch.cat(found)

    def by_tokens(self, wide: Tensor, scene: "Scene", after: Tensor) -> Tensor:
        """As `drawn`, each token from what top-k and top-p leave of what may follow."""
        automaton, standing, asked = self.automaton, scene.standing, scene.asked
        tokens = scene.progress.window.tokens
        slot = scene.places.spread(torch.arange(len(wide), device=wide.device), tokens)
        assert slot is not None
        state, found = standing.first, []
        for column in range(tokens.shape[1]):
            follows = relative(after[:, column].gather(1, automaton.following[state]))
            bias = (follows * scene.temperature[:, None]).float()
            token = token_statistics(
                wide[slot[:, column]] + bias.index_select(1, automaton.class_of),
                (),
                suppressed=self.suppressed,
                temperature=scene.canvas.temperature,
                scale=asked.scale,
                **asked.filters,
                key=scene.key(column),
            ).sampled
            token = torch.where(standing.open[:, column], token, tokens[:, column])
            reached = automaton.following[state, automaton.class_of[token]]
            state = torch.where(standing.inside[:, column], reached, state)
            found.append(token)
        return scene.places.take(torch.stack(found, 1))

    def restrict(self, wide: Tensor, scene: "Scene") -> None:
        """Turn the logits of open columns into those of their distribution over all texts."""
        temperature, standing = scene.scored, scene.standing
        weights = self.weights(wide, scene, temperature)
        around = relative(others(self.automaton, weights, standing))
        bias = (around * temperature[:, None, None]).masked_fill(~standing.open[..., None], 0.0)
        each = scene.places.take(bias.float())
        for rows in scene.parts(len(wide)):
            wide[rows] += each[rows].index_select(1, self.automaton.class_of)

    def measured(self, wide: Tensor, scene: "Scene", tokens: Tensor) -> TokenStatistics:
        """Statistics of the logits as they are now, with what was sampled, int64 [N]."""
        asked = scene.asked
        options: dict[str, Any] = {"law": asked.law, "top": asked.top}
        if asked.draws and asked.law == "sampling":
            options |= {**scene.drawing(slice(None)), **asked.filters}
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
        if found is not None:  # no mask is ever sampled
            found = found.masked_fill(scene.places.take(scene.standing.open), 0.0)
        of_tokens = found if "token_probability" in wanted else None
        return replace(told, sampled=tokens, confidence=confidence, token_probability=of_tokens)


@dataclass(frozen=True, slots=True)
class Scene:
    """One forward: what was asked where, and what stands there."""

    canvas: Canvas
    progress: Progress
    places: Places
    asked: Asked
    standing: Standing

    def parts(self, count: int) -> Iterator[slice]:
        """Some of `count` rows of logits after the other."""
        return (slice(begin, begin + ROWS) for begin in range(0, count, ROWS))

    @property
    def temperature(self) -> Tensor:
        """That tokens are drawn at, float32 [B]."""
        scale, own = self.asked.scale, self.canvas.temperature
        return own if scale is None else own / scale

    @property
    def scored(self) -> Tensor:
        """That of the law which statistics describe, float32 [B]."""
        asked, own = self.asked, self.canvas.temperature
        if not (asked.draws and asked.law == "sampling"):
            own = torch.ones_like(own)
        return own if asked.scale is None or not asked.scale_statistics else own / asked.scale

    def key(self, column: int, *, apart: bool = False) -> NoiseKey:
        """The noise of a column of all rows; `apart` from that which tokens are drawn with."""
        canvas, made = self.canvas, self.progress.made
        position = self.progress.window.positions[:, column]
        return NoiseKey(canvas.seed, canvas.row_key, position, made + APART if apart else made)

    def drawing(self, rows: slice) -> dict[str, Any]:
        """Temperature, scale and noise of some places, as `token_statistics` takes them."""
        canvas, row, scale = self.canvas, self.places.row[rows], self.asked.scale
        position = self.places.position[rows]
        key = NoiseKey(canvas.seed[row], canvas.row_key[row], position, self.progress.made[row])
        options: dict[str, Any] = {"temperature": canvas.temperature[row], "key": key}
        return options if scale is None else options | {"scale": scale[row]}

    def given(self, tokens: Tensor) -> Tensor:
        """Tokens sampled at the places, int64 [N], and those that stand where one does."""
        window = self.progress.window
        open_, there = self.places.take(window.masked), self.places.take(window.tokens)
        return torch.where(open_, tokens, there)
