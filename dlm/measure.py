"""One forward pass: samples and statistics at the positions a decoder reads.

Shapes: B rows, L canvas, W window, N positions that need a prediction, V vocabulary, D model
width.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dlm.bias import Bias
from dlm.blame import Peaks
from dlm.canvas import Canvas
from dlm.constraints.automaton import everything
from dlm.constraints.constraint import Constraint
from dlm.constraints.drawing import Asked, Joint
from dlm.forward import Forward
from dlm.guidance import guided
from dlm.horizon import Horizon
from dlm.kernels import (
    Bonus,
    NoiseKey,
    Suppressed,
    TokenStatistics,
    fused_canvas,
    gumbel,
    gumbels,
    token_statistics,
    uniform,
)
from dlm.kernels import canvas as plain
from dlm.models.model import Model
from dlm.places import Places
from dlm.progress import ForwardPlan, Progress
from dlm.settings import Settings
from dlm.traits import Traits
from dlm.types import STATISTICS, Adjustment, StepView

NOT_STATISTICS = STATISTICS - {"confidence", "margin", "entropy", "token_probability"}
MEASURED = (
    "sampled",
    "confidence",
    "margin",
    "entropy",
    "token_probability",
    "top_tokens",
    "top_probabilities",
)
"""Fields that `StepView` and `TokenStatistics` share."""

ADJUSTMENTS = ("scale", "scale_statistics", "bonus", "top")
"""Options of `token_statistics` that are not sampling options."""


class Meter:
    """Runs forward passes and measures them, with fixed options."""

    def __init__(
        self,
        model: Model,
        traits: Traits,
        settings: Settings,
        languages: Sequence[Constraint | None] = (),
        *,
        block_length: int,
        dense: bool = False,
    ) -> None:
        """Take the constraints of the rows, as numbered by the canvas; empty if there are none.

        With `dense`, every column is measured, instead of a list of the wanted ones.
        """
        device = model.device
        self.places = Places.all if dense else Places.where
        self.model = model
        self.block_length = block_length
        self.horizon = Horizon(settings.suffix_window, block_length * (1 + traits.ahead))
        self.forward = Forward(model, traits, settings, self.horizon, static=dense)
        self.settings = settings
        self.traits = traits
        self.statistics = traits.needs - NOT_STATISTICS
        if settings.return_trajectory:
            self.statistics |= {"confidence"}
        self.own_top = traits.top if "top_tokens" in traits.needs else 0  # the decoder's
        self.top = max(self.own_top, settings.return_top_tokens)
        # Ranking stop tokens last looks at the sampled tokens.
        looks = settings.confidence_eos_eot_inf
        self.keeps_path = traits.has_path and settings.draws and not (languages or looks)
        self.bias = Bias.of(settings.biases, device)
        self.begin = ids(settings.begin_suppress_tokens, device)
        self.filters = settings.filters
        never = (*model.spec.banned, *settings.suppress_tokens)
        banned = torch.zeros(model.spec.vocab_size, dtype=torch.bool, device=device)
        banned[ids(never, device)] = True
        self.suppressed = Suppressed.of(banned)
        self.wordless: Suppressed | None = None  # also suppresses stop tokens
        if looks:
            stops = ids(model.spec.stop_ids, device)
            self.wordless = Suppressed.of(banned.index_fill(0, stops, True))
        self.joint = None
        if languages:
            free = everything(model.spec) if None in languages else None
            made = (free if one is None else one.automaton for one in languages)
            automata = [each.without(never) for each in made if each is not None]
            self.joint = Joint(automata, self.suppressed, cross_block=traits.cross_block)

    def look(self, canvas: Canvas, progress: Progress) -> StepView:
        """The view before the forward pass: canvas, budget and noise."""
        return self.with_noise(self.glance(canvas, progress), canvas, progress.made)

    def glance(self, canvas: Canvas, progress: Progress) -> StepView:
        """The same without noise."""
        window, spent = progress.window, progress.spent
        masked = window.masked
        by = fused_canvas if fused_canvas.covers(masked, masked.shape[1]) else plain
        quota, editable, nothing = by.look(masked, window.blank, window.limit, spent)
        if self.traits.ahead:  # the active block's budget is for its own masks
            quota = plain.owed(masked[:, : self.block_length], window.limit, spent)
        return StepView(
            tokens=window.tokens,
            masked=masked,
            sampled=nothing,
            positions=window.positions,
            block_start=window.start,
            block_length=self.block_length,
            row_start=canvas.start,
            row_stop=canvas.stop,
            step=spent,
            limit=window.limit,
            quota=quota,
            editable=editable,
        )

    def with_noise(self, view: StepView, canvas: Canvas, made: Tensor) -> StepView:
        """Add the noise that the decoder reads, at every column."""
        warmth = self.settings.position_temperature if "position_noise" in self.traits.needs else 0
        if not warmth and "uniform" not in self.traits.needs:
            return view
        shape, key = view.positions.shape, noise_key(view, canvas, made)
        drawn: dict[str, Any] = {}
        if "uniform" in self.traits.needs:
            drawn["uniform"] = uniform(key).view(shape)
        if warmth:
            drawn["position_noise"] = (warmth * gumbel(key)).view(shape)
        return replace(view, **drawn)

    def with_branch_noise(self, view: StepView, canvas: Canvas, made: Tensor) -> StepView:
        """Add the per-branch noise of the rows, if the decoder reads it."""
        if "branch_noise" not in self.traits.needs:
            return view
        batch, width = view.positions.shape
        noise = gumbels(noise_key(view, canvas, made), self.traits.branches)
        return replace(view, branch_noise=noise.view(batch, width, -1).transpose(1, 2))

    def drawing(self, canvas: Canvas, places: Places, made: Tensor) -> dict[str, Any]:
        """Temperature and noise at some places, as arguments of `token_statistics`.

        The temperature is given per row even if all rows have the same: a GPU divides by a scalar
        differently, and a row's bits would then depend on the rest of its batch.
        """
        if not self.settings.draws:
            return {"temperature": 0.0}
        row = places.row
        key = NoiseKey(canvas.seed[row], canvas.row_key[row], places.position, made[row])
        return {"temperature": canvas.temperature[row], "key": key}

    def wanted(self, view: StepView) -> Tensor:
        """The columns a decoder reads, bool [B, W]."""
        if "logits" in self.traits.needs:
            return torch.ones_like(view.masked)
        return view.masked | view.editable if self.traits.reads_committed else view.masked

    def measure(
        self,
        canvas: Canvas,
        progress: Progress,
        plan: ForwardPlan,
        view: StepView,
        wanted: Tensor,
    ) -> "Measured":
        """Run the network, then project, sample and measure at the columns `wanted`.

        Args:
            canvas: the rows.
            progress: their state.
            plan: what the host knows about them.
            view: from `look`.
            wanted: bool [B, W].
        """
        # First, as it may wait for the device: later work is queued while the network computes.
        places = self.places(wanted, view.positions)
        hidden = self.forward(canvas, view, progress, plan)
        logits = self.logits(hidden.states, canvas, places, hidden.by_column)
        state, adjustment = self.adjusted(progress.state, view, places, logits)
        if self.joint is not None and len(logits):
            asked = self.asked(adjustment, places, len(logits))
            drawn = self.joint.statistics(logits, canvas, progress, places, asked)
        else:
            drawing = self.drawing(canvas, places, progress.made)
            drawn = self.draw(logits, adjustment, view, places, drawing)
        made: dict[str, Any] = {}
        if "logits" in self.traits.needs:
            banned = self.bias.added(logits).masked_fill(self.suppressed.mask, -torch.inf)
            made["logits"] = places.spread(banned, view.masked)
        if hidden.shadows is not None:
            made["leave_one_out"] = self.leave_one_out(hidden.shadows, canvas, view)
        peaks = Peaks(drawn.maximum, places)
        return Measured(
            state=state,
            view=self.filled(view, drawn, places, **made),
            finite=places.every(peaks.finite),
            peaks=peaks,
            log_probability=places.spread(drawn.sampled_log_probability, view.masked),
            queries=hidden.queries,
        )

    def filled(
        self, view: StepView, measured: TokenStatistics, places: Places, **more: Any
    ) -> StepView:
        """The view with statistics filled in at some places."""
        made: dict[str, Any] = {
            name: places.spread(getattr(measured, name), view.masked) for name in MEASURED
        }
        return replace(view, **made, **more)

    def logits(self, hidden: Tensor, canvas: Canvas, places: Places, by_column: bool) -> Tensor:
        """Logits [N, V] at some places, with guidance and `begin_suppress_tokens` applied."""
        batch, device = canvas.tokens.shape[0], hidden.device
        logits = self.model.logits(places.of(hidden[:batch], by_column)).to(device)
        scale = self.settings.cfg_scale
        if scale:
            free = self.model.logits(places.of(hidden[batch:], by_column)).to(device)
            logits = guided(logits, free, scale)
        if self.begin.numel():
            first = (places.position == canvas.start[places.row])[:, None]
            logits[:, self.begin] = logits[:, self.begin].masked_fill(first, -torch.inf)
        return logits

    def adjusted(
        self, state: Any, view: StepView, places: Places, logits: Tensor
    ) -> tuple[Any, Adjustment]:
        """The decoder's adjustment of the logits, and its new state."""
        if self.traits.adjust is None:
            return state, Adjustment()
        if self.traits.adjust_needs:
            needs = self.traits.adjust_needs
            raw = token_statistics(
                logits,
                needs - NOT_STATISTICS,
                suppressed=self.suppressed,
                bonus=self.bias.beside(None, len(logits)),
                top=self.traits.top if "top_tokens" in needs else 0,
            )
            view = self.filled(view, raw, places)
        adjusted: tuple[Any, Adjustment] = self.traits.adjust(state, view)
        return adjusted

    def bonus(self, adjustment: Adjustment, places: Places, count: int) -> Bonus | None:
        """The bonus of the decoder and the user's bias, at `count` places."""
        bonus = None
        if adjustment.tokens is not None and adjustment.bonus is not None:
            bonus = Bonus(places.take(adjustment.tokens), places.take(adjustment.bonus))
        return self.bias.beside(bonus, count)

    def asked(self, adjustment: Adjustment, places: Places, count: int) -> Asked:
        """What to sample and measure at `count` places under a constraint."""
        settings = self.settings
        return Asked(
            wanted=self.statistics,
            law=self.traits.scores,
            draws=settings.draws,
            filters=self.filters,
            top=self.top,
            scale=adjustment.scale,
            scale_statistics=adjustment.scale_statistics,
            bonus=self.bonus(adjustment, places, count),
        )

    def draw(
        self,
        logits: Tensor,
        adjustment: Adjustment,
        view: StepView,
        places: Places,
        drawing: dict[str, Any],
    ) -> TokenStatistics:
        """Sample, and measure what the decoder reads."""
        scale = None if adjustment.scale is None else adjustment.scale[places.row]
        options: dict[str, Any] = {
            **drawing,
            **self.filters,
            "scale": scale,
            "scale_statistics": adjustment.scale_statistics,
            "bonus": self.bonus(adjustment, places, len(logits)),
            "law": self.traits.scores,
            "top": self.top,
        }
        wanted = self.statistics | ({"sampled_log_probability"} if self.keeps_path else set())
        if not self.settings.confidence_eos_eot_inf:
            tokens = places.take(view.tokens)
            return token_statistics(
                logits,
                wanted,
                suppressed=self.suppressed,
                tokens=tokens,
                **options,
            )
        drawn = token_statistics(
            logits, wanted - self.statistics, suppressed=self.suppressed, **options | {"top": 0}
        )
        return self.rank_stops_last(logits, drawn, options)

    def rank_stops_last(
        self, logits: Tensor, drawn: TokenStatistics, options: dict[str, Any]
    ) -> TokenStatistics:
        """Measure as if stop tokens did not exist; a position that drew one ranks last."""
        if self.traits.scores == "model":  # sampling options do not change its statistics
            options = {name: options[name] for name in ADJUSTMENTS}
        assert self.wordless is not None
        ranked = token_statistics(
            logits,
            self.statistics | {"token_probability"},
            suppressed=self.wordless,
            tokens=drawn.sampled,
            **options,
        )
        ends = self.wordless.mask[drawn.sampled]
        margin, entropy = ranked.margin, ranked.entropy
        # The sample may lie outside the top-p set that is computed without stop tokens.
        least = torch.finfo(torch.float32).tiny
        assert ranked.token_probability is not None
        return replace(
            ranked,
            sampled=drawn.sampled,
            maximum=drawn.maximum,
            confidence=ranked.token_probability.clamp(min=least).masked_fill(ends, 0.0),
            margin=None if margin is None else margin.masked_fill(ends, 0.0),
            entropy=None
            if entropy is None
            else entropy.masked_fill(ends, math.log(logits.shape[-1])),
            token_probability=None,
            sampled_log_probability=drawn.sampled_log_probability,
        )

    def leave_one_out(self, shadows: Tensor, canvas: Canvas, view: StepView) -> Tensor:
        """Probability of each committed token from the shadow mask in its place, float32 [B, W]."""
        places = self.places(view.editable, view.positions)
        logits = self.logits(shadows, canvas, places, True)
        judged = token_statistics(
            logits,
            ("token_probability",),
            suppressed=self.suppressed,
            bonus=self.bias.beside(None, len(logits)),
            tokens=places.take(view.tokens),
        )
        spread = places.spread(judged.token_probability, view.masked)
        assert spread is not None
        return spread


def noise_key(view: StepView, canvas: Canvas, made: Tensor) -> NoiseKey:
    """Noise keys at every column of a view; `made` counts each row's forward passes."""
    width = view.positions.shape[1]
    return NoiseKey(
        canvas.seed.repeat_interleave(width),
        canvas.row_key.repeat_interleave(width),
        view.positions.flatten(),
        made.repeat_interleave(width),
    )


@dataclass(frozen=True, slots=True)
class Measured:
    """A view with its statistics."""

    state: Any  # of the decoder, after it adjusted logits
    view: StepView
    finite: Tensor  # bool scalar, whether every logit the view rests on was finite
    peaks: Peaks  # of these logits, for error messages; of every branch
    log_probability: Tensor | None  # float32 [B, W], ln q(sampled), q the sampling law
    queries: Tensor  # int64 [B], positions evaluated by the network


def ids(tokens: Sequence[int], device: torch.device) -> Tensor:
    """Token ids as an index, int64 [n]."""
    return torch.tensor(tokens, dtype=torch.int64, device=device)
