"""Tokens drawn together under a constraint, and what it leaves of every position's distribution.

Shapes: B rows, L canvas, W window, N columns measured, S states, C classes, V vocabulary.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dlm.canvas import Canvas
from dlm.constraints.automaton import Automaton
from dlm.constraints.chain import Standing, backward, others, relative, walked, weighed
from dlm.kernels import Bonus, NoiseKey, TokenStatistics, token_statistics
from dlm.places import Places
from dlm.progress import Progress
from dlm.tree import mapped

ROWS = 32  # of logits that are brought together at a time, each a copy in float32


@dataclass(frozen=True, slots=True)
class Asked:
    """What a forward asks of the positions it measures, in the words of `token_statistics`."""

    wanted: Collection[str]
    law: str  # "model" or "sampling"
    draws: bool  # whether tokens are drawn, rather than those of the likeliest text taken
    top_k: int | None
    top_p: float | None
    top: int
    scale: Tensor | None  # float32 [B]
    scale_statistics: bool
    bonus: Bonus | None


class Joint:
    """Draws all open positions of a window together, and measures each under the constraint.

    Texts are drawn from prod_i p_i(x_i), restricted to those that the language takes as a whole:
    from left to right from p_i(v) b_{i+1}(d(q_i, v)), cut by top-k and top-p, by the race and the
    noise of a step without constraint. T = 0 takes the likeliest of them. Any of the tokens may be
    written without the others, as the others make a text of the language with it.

    Statistics are of the distribution of a position over all such texts, p_i(v) w_i(v) / Z: where
    nothing else may stand a token is certain, and what another position rules out is impossible.
    Where a token stands it is given: it is what is sampled there, and measured by the model's law.
    """

    def __init__(self, automaton: Automaton, suppressed: Tensor, *, cross_block: bool) -> None:
        """Take the language, bool [V] of tokens never sampled, and whether windows reach back."""
        never = suppressed.nonzero()[:, 0].tolist()
        here = automaton.without(never)
        self.automaton = mapped(lambda part: part.to(suppressed.device), here)
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
        wide = logits.float().masked_fill(self.suppressed, -torch.inf)
        if asked.bonus is not None:
            wide.scatter_add_(1, asked.bonus.tokens, asked.bonus.values)
        standing = self.standing(canvas, progress)
        sampled = self.drawn(wide, canvas, progress, places, asked, standing)
        if asked.wanted or asked.top:
            self.restrict(wide, canvas, places, asked, standing)
        return self.measured(wide, canvas, progress, places, asked, sampled)

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

    def drawn(
        self,
        wide: Tensor,
        canvas: Canvas,
        progress: Progress,
        places: Places,
        asked: Asked,
        standing: Standing,
    ) -> Tensor:
        """A text of the language that has what stands, and its tokens elsewhere; int64 [B, W]."""
        automaton, window = self.automaton, progress.window
        options: dict[str, Any] = {"top_k": asked.top_k, "top_p": asked.top_p}
        temperature = None
        if asked.draws:
            options |= {"temperature": canvas.temperature, "scale": asked.scale}
            temperature = over(canvas.temperature, asked.scale)
        weights = self.weights(wide, places, temperature, standing)
        after = backward(
            automaton, weights, standing, torch.logsumexp if asked.draws else torch.amax
        )
        slot = places.spread(torch.arange(len(wide), device=wide.device), window.masked)
        assert slot is not None
        state, found = standing.first, []
        for column in range(window.masked.shape[1]):
            follows = after[column + 1].gather(1, automaton.following[state])
            bias = relative(follows) if temperature is None else relative(follows) * temperature
            law = wide[slot[:, column]] + bias.float()[:, automaton.class_of]
            if asked.draws:
                options["key"] = NoiseKey(
                    canvas.seed, canvas.row_key, window.positions[:, column], progress.made
                )
            token = token_statistics(law, (), suppressed=self.suppressed, **options).sampled
            token = torch.where(standing.open[:, column], token, window.tokens[:, column])
            behind = automaton.following[state, automaton.class_of[token]]
            state = torch.where(standing.inside[:, column], behind, state)
            found.append(token)
        return torch.stack(found, 1)

    def weights(
        self, wide: Tensor, places: Places, temperature: Tensor | None, standing: Standing
    ) -> Tensor:
        """What each class weighs at each column, float64 [B, W, C]; its likeliest token for None.

        Args:
            wide: [N, V], logits.
            places: their columns.
            temperature: float64 [B, 1].
            standing: what stands in the window.
        """
        by_class, found = self.automaton.by_class, []
        each = None if temperature is None else temperature.float()[places.row]
        for begin in range(0, len(wide), ROWS):
            part = wide[begin : begin + ROWS]
            if each is None:
                found.append(by_class.reduce(part, torch.amax))
            else:
                part = part / each[begin : begin + ROWS]
                found.append(by_class.reduce(part, torch.logsumexp))
        masses = places.spread(torch.cat(found), standing.open)
        assert masses is not None
        return weighed(masses, standing)

    def restrict(
        self, wide: Tensor, canvas: Canvas, places: Places, asked: Asked, standing: Standing
    ) -> None:
        """Turn the logits of open columns into those of their distribution over all texts."""
        plain = torch.ones_like(canvas.temperature)
        temperature = canvas.temperature if asked.draws and asked.law == "sampling" else plain
        temperature = over(temperature, asked.scale if asked.scale_statistics else None)
        weights = self.weights(wide, places, temperature, standing)
        after = backward(self.automaton, weights, standing, torch.logsumexp)
        around = relative(others(self.automaton, weights, standing, after))
        bias = (around * temperature[:, None]).masked_fill(~standing.open[..., None], 0.0)
        each = places.take(bias.float())
        for begin in range(0, len(wide), ROWS):
            some = slice(begin, begin + ROWS)
            wide[some] += each[some][:, self.automaton.class_of]

    def measured(
        self,
        wide: Tensor,
        canvas: Canvas,
        progress: Progress,
        places: Places,
        asked: Asked,
        sampled: Tensor,
    ) -> TokenStatistics:
        """Statistics of the logits as they are now, with what was sampled, int64 [B, W]."""
        tokens = places.take(sampled)
        options: dict[str, Any] = {"law": asked.law, "top": asked.top}
        if asked.scale is not None:
            options["scale"] = asked.scale[places.row]
        if asked.draws and asked.law == "sampling":
            row = places.row
            options |= {"temperature": canvas.temperature[row], "top_k": asked.top_k}
            options["top_p"] = asked.top_p
            options["key"] = NoiseKey(
                canvas.seed[row], canvas.row_key[row], places.position, progress.made[row]
            )
        own = {"confidence", "token_probability"}
        wanted = (set(asked.wanted) - own) | ({"token_probability"} if asked.wanted else set())
        told = token_statistics(
            wide,
            wanted,
            suppressed=self.suppressed,
            tokens=tokens,
            scale_statistics=asked.scale_statistics,
            **options,
        )
        found = told.token_probability
        if "token_probability" in asked.wanted:
            assert found is not None
            of_tokens = found.masked_fill(places.take(progress.window.masked), 0.0)
        else:
            of_tokens = None
        confidence = found if "confidence" in asked.wanted else None
        return replace(told, sampled=tokens, confidence=confidence, token_probability=of_tokens)


def over(temperature: Tensor, scale: Tensor | None) -> Tensor:
    """T / s of each row, float64 [B, 1]."""
    divided = temperature if scale is None else temperature / scale
    return divided.double()[:, None]
