"""Confidence, margin, entropy and exact samples of many rows, in one read of the logits.

Shapes: N rows, V vocabulary, S likeliest tokens.
"""

from collections.abc import Collection
from typing import Literal

import torch
from torch import Tensor

from dlm.kernels import fused, selfcheck
from dlm.kernels.call import Call, TokenStatistics
from dlm.kernels.checks import STATISTICS
from dlm.kernels.fused import FusedLaw, fused_statistics
from dlm.kernels.noise import NoiseKey
from dlm.kernels.race import race_tiles, race_tokens
from dlm.kernels.scan import Filters, Law, Plan, Scan
from dlm.kernels.tiles import Bonus, Suppressed, Temperature, TiledLogits, bounded, over

__all__ = ["STATISTICS", "TokenStatistics", "categorical", "token_statistics"]


def token_statistics(  # noqa: PLR0913 (one read computes everything requested)
    logits: Tensor,
    wanted: Collection[str],
    temperature: float | Tensor = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    key: NoiseKey | None = None,
    *,
    suppressed: Tensor | Suppressed | None = None,
    tokens: Tensor | None = None,
    law: Literal["model", "sampling"] = "model",
    scale: Tensor | None = None,
    scale_statistics: bool = True,
    bonus: Bonus | None = None,
    top: int = 0,
    min_p: float | None = None,
) -> TokenStatistics:
    """Sample a token of each row and measure the row's distribution.

    With m = max l and Z = sum exp(l - m): confidence = exp(l_sampled - m) / Z, margin =
    (1 - exp(l_second - m)) / Z, entropy = ln Z - sum (l - m) exp(l - m) / Z. All are float32 from
    upcast logits. Under the law "model" neither temperature nor filters change them. Under the law
    "sampling" l - m is first divided by T (by 1 if T = 0), and the sums run over the tokens that
    the filters keep: Dream (Ye et al. 2025, arXiv:2508.15487) scores positions by these.

    The sample follows softmax(l / T), restricted by top-k, top-p and min-p. It is drawn by the
    exponential race of Gumbel-max in two heats, first over tiles and then over tokens of the
    winning tile. Each contestant has 64 random bits, and the uniform is finely resolved at the end
    where the race is won: float32 noise of 24 bits would drop tokens below e**-16.6 of the top
    (Zheng et al. 2024, arXiv:2409.02908). A row's sample depends on its own logits and key, not on
    the rest of the batch. T = 0 is the arg max, the lower id among equals, and uses no noise.

    A scale s replaces T by T / s, also where the statistics use T = 1.

    -inf logits are never drawn while a row has another; a row of nothing else is uniform over its
    unsuppressed tokens. A NaN or +inf logit that is not suppressed makes the row's statistics NaN.

    On a GPU the Triton kernels answer the calls that `fused.covers` admits, from the same random
    words, once they have passed `selfcheck` on that device.

    Args:
        logits: Floating point [N, V], read only.
        wanted: Which statistics to compute, out of `STATISTICS`; "sampled" is always returned.
        temperature: T, at least 0; or float32 [N], T of each row, above 0 and finite (checked on
            the CPU only). A number is rounded to float32, so that a row gets the same bits from a
            number as from a tensor, on a GPU where the Triton kernels answer.
        top_k: Keep the k likeliest tokens, the lower id among equals. None keeps all.
        top_p: Keep the fewest likeliest tokens with at least this share. None keeps all.
        key: The noise of the rows; needed when T is above 0.
        suppressed: bool [V], tokens of probability 0. At least one must be left (checked on the
            CPU only, as a GPU would have to wait). For many calls prepare it with `Suppressed.of`:
            otherwise each call takes longer, on the CPU by the search for the few ids.
        tokens: int64 [N], for `token_probability` and `token_log_probability`.
        law: What the statistics describe: the "model", or the "sampling" distribution, where
            dropped tokens have probability 0. `sampled_log_probability` is always that of the
            latter, and 0 for the arg max of T = 0.
        scale: float32 [N], above 0 (checked on the CPU only), factor on the logits of each row.
            None is 1.
        scale_statistics: Whether all statistics but `sampled_log_probability` see the scale too.
            If not, the statistics of "sampling" are those of the distribution without it.
        bonus: Added to the logits of a few tokens of every row, in float32 and before anything
            else, so that it counts in full whatever the dtype of the logits.
        top: How many of the likeliest tokens to list, at most V; the lower id first among equals,
            suppressed tokens last. 0 lists none.
        min_p: Of the tokens that the other filters keep, keep those with at least this times the
            probability of the likeliest. None and 0 keep all.

    Returns:
        The sample, the wanted statistics and with `top` the lists of S = min(top, V); the others
        are None.

    Raises:
        ValueError: If an option, a name, a shape or a dtype breaks its rule.
    """
    call = Call(
        logits.detach(),
        [name for name in wanted if name != "sampled"],
        temperature,
        top_k,
        top_p,
        suppressed,
        tokens,
        key,
        law,
        scale,
        scale_statistics,
        bonus,
        top,
        min_p,
    )
    fast = fused.covers(call) and selfcheck.passes(call.device, call.dtype, by_kernels, by_torch)
    return by_kernels(call) if fast else by_torch(call)


def by_kernels(call: Call) -> TokenStatistics:
    """Answer a call that `fused.covers` admits with the Triton kernels."""
    scale = None if call.scale is None else call.scale.detach()
    temperature = _each(call)
    drawn = FusedLaw(temperature, scale) if call.draws else None
    scored = None
    if set(call.wanted) - {"sampled_log_probability"}:
        used = temperature if call.law == "sampling" else None
        scored = FusedLaw(used, scale if call.scale_statistics else None)
    return TokenStatistics(**fused_statistics(call, drawn, scored))


def _each(call: Call) -> Tensor | None:
    """T of each row for the kernels, float32 [N]; None is 1, which also represents 0."""
    temperature = call.temperature
    if isinstance(temperature, Tensor):
        return temperature.detach()  # the kernels bound it
    if temperature in (0, 1):
        return None
    return call.logits.new_full(call.logits.shape[:1], bounded(temperature), dtype=torch.float32)


def by_torch(call: Call) -> TokenStatistics:
    """Answer any call with torch operations."""
    tiled = TiledLogits.of(call.logits, call.suppressed, call.bonus)
    filters = Filters(call.top_k, None if call.top_p == 1 else call.top_p, call.min_p or None)
    laws = _Laws(call.logits, call.temperature, filters, call.scale)
    scored = laws.get(sampling=call.law == "sampling", scaled=call.scale_statistics)
    measured = call.top > 0 or set(call.wanted) - {"sampled_log_probability"}
    plan = Plan(
        drawn=laws.get(sampling=True, scaled=True) if call.draws else None,
        scored=scored if measured else None,
        top=min(call.top, tiled.vocabulary),
        entropy="entropy" in call.wanted,
    )
    scan = Scan.of(tiled, plan)
    sampled = _draw(scan, call.key)
    return TokenStatistics(
        sampled,
        scan.maximum,
        **{name: _measure(name, scan, scored, sampled, call.tokens) for name in call.wanted},
        top_tokens=scan.top_tokens if call.top else None,
        top_probabilities=scan.top_probabilities(scored) if call.top else None,
    )


def categorical(
    logits: Tensor,
    *,
    temperature: float | Tensor,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    suppressed: Tensor | Suppressed | None = None,
    key: NoiseKey | None = None,
) -> tuple[Tensor, Tensor]:
    """Sample a token of each row; see `token_statistics`.

    Returns:
        Tokens, int64 [N], and their probability under the untempered model, float32 [N].
    """
    drawn = token_statistics(
        logits,
        ("confidence",),
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        suppressed=suppressed,
        key=key,
    )
    assert drawn.confidence is not None
    return drawn.sampled, drawn.confidence


class _Laws:
    """The laws of one call, each created once."""

    def __init__(
        self, logits: Tensor, temperature: Temperature, filters: Filters, scale: Tensor | None
    ) -> None:
        self.logits = logits  # any floating dtype [N, V]
        if not isinstance(temperature, Tensor):
            temperature = temperature or 1.0  # replaces 0 in the statistics
        self.temperature = temperature  # a number or float32 [N]
        self.filters = None if filters == Filters(None, None, None) else filters
        self.scale = scale  # float32 [N]
        self.made: dict[tuple[bool, bool, bool], Law] = {}

    def get(self, *, sampling: bool, scaled: bool) -> Law:
        """The law of the model or of sampling, with or without the scale of the rows."""
        temperature = self.temperature if sampling else 1.0
        tempered = isinstance(temperature, Tensor) or temperature != 1
        filters = self.filters if sampling else None
        scale = self.scale if scaled else None
        name = (tempered, filters is not None, scale is not None)
        if name not in self.made:
            self.made[name] = Law.of(self.logits, over(temperature, scale), filters)
        return self.made[name]


def _draw(scan: Scan, key: NoiseKey | None) -> Tensor:
    """A token of each row, int64 [N]."""
    law = scan.plan.drawn
    if law is None:
        return scan.arg_max()
    assert key is not None
    noise = key.stream()
    tile = race_tiles(law.mass, noise)
    return race_tokens(scan.tiled, tile, law.temperature, law.cut, noise)


def _measure(name: str, scan: Scan, law: Law, sampled: Tensor, tokens: Tensor | None) -> Tensor:
    """One statistic, float32 [N]."""
    if name == "sampled_log_probability":
        drawn = scan.plan.drawn
        if drawn is None:
            return scan.maximum - scan.maximum  # 0, but NaN in a broken row
        return scan.log_probability(drawn, sampled)
    if name == "entropy":
        return scan.entropy
    if name == "margin":
        return scan.margin(law)
    if name == "confidence":
        return scan.probability(law, sampled)
    assert tokens is not None
    measure = scan.probability if name == "token_probability" else scan.log_probability
    return measure(law, tokens)
