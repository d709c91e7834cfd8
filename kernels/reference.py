"""Token statistics without streaming, in float64: the reference for tests.

Shapes: N rows, V vocabulary, K tiles.
"""

from collections.abc import Collection
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from dlm.kernels.call import Call, TokenStatistics
from dlm.kernels.noise import TILE_RACE, TOKEN_RACE, NoiseKey, NoiseStream
from dlm.kernels.tiles import TILE, Bonus, Suppressed


def token_statistics_reference(  # noqa: PLR0913 (the signature of the streamed path)
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
    """`token_statistics` in float64, with statistics returned in float64.

    It uses the same random words in the same two heats, so its samples equal those of the streamed
    path except for near-ties within float32 rounding.

    Args:
        logits: As in `token_statistics`, and so are the other arguments.
        wanted: Likewise.
        temperature: Likewise.
        top_k: Likewise.
        top_p: Likewise.
        key: Likewise.
        suppressed: Likewise.
        tokens: Likewise.
        law: Likewise.
        scale: Likewise.
        scale_statistics: Likewise.
        bonus: Likewise.
        top: Likewise.
        min_p: Likewise.

    Returns:
        The sample, the wanted statistics and the lists; probabilities and statistics are float64.

    Raises:
        ValueError: If an option, a name, a shape or a dtype breaks its rule.
    """
    call = Call(
        logits,
        wanted,
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
    )  # checks the arguments
    raised = logits.double()
    if bonus is not None:
        raised = raised.scatter_add(1, bonus.tokens, bonus.values.double())
    raw = _cleaned(raised, call.mask)
    scaled = raw if scale is None else raw * scale.double()[:, None]
    seen = scaled if scale_statistics else raw  # logits of the statistics
    used = temperature[:, None] if isinstance(temperature, Tensor) else temperature or 1.0
    if key is None or not call.draws:
        sampled = raw.argmax(1)
        log_q = torch.zeros_like(raw)
    else:
        log_q = _filtered(scaled / used, call).log_softmax(1)
        sampled = _race(log_q, key.stream())
    scores = seen if law == "model" else _filtered(seen / used, call)
    log_p = scores.log_softmax(1)
    p = log_p.exp()
    ranked = pad(p, (0, 1)).sort(dim=1, descending=True).values
    every = {
        "confidence": p.gather(1, sampled[:, None])[:, 0],
        "margin": ranked[:, 0] - ranked[:, 1],
        "entropy": torch.special.entr(p).sum(1),
        "token_log_probability": None if tokens is None else log_p.gather(1, tokens[:, None])[:, 0],
        "token_probability": None if tokens is None else p.gather(1, tokens[:, None])[:, 0],
        "sampled_log_probability": log_q.gather(1, sampled[:, None])[:, 0],
    }
    likeliest = _order(raw, call.mask)[:, :top] if top else None
    return TokenStatistics(
        sampled,
        raw.amax(1),
        **{name: every[name] for name in wanted},
        top_tokens=likeliest,
        top_probabilities=None if likeliest is None else p.gather(1, likeliest),
    )


def _cleaned(logits: Tensor, suppressed: Tensor | None) -> Tensor:
    """Logits with suppressed tokens at -inf; rows without a finite logit are 0 elsewhere."""
    nothing_banned = logits.new_zeros(logits.shape[1], dtype=torch.bool)
    banned = nothing_banned if suppressed is None else suppressed
    values = logits.double().masked_fill(banned, -torch.inf)
    nothing = (values == -torch.inf).all(1, keepdim=True)
    return values.masked_fill(nothing & ~banned, 0.0)


def _order(values: Tensor, suppressed: Tensor | None) -> Tensor:
    """Tokens by logit, descending, then by id, and suppressed ones last; int64 [N, V]."""
    finite = values.clamp(min=-1e300)  # keeps a -inf logit above a suppressed token
    if suppressed is not None:
        finite = finite.masked_fill(suppressed, -torch.inf)
    return finite.sort(dim=1, descending=True, stable=True).indices


def _filtered(values: Tensor, call: Call) -> Tensor:
    """Logits [N, V] with -inf for tokens that fail top-k, top-p and then min-p."""
    return values.masked_fill(~_survivors(values, call), -torch.inf)


def _survivors(values: Tensor, call: Call) -> Tensor:
    """Whether each token passes top-k, top-p and then min-p; bool [N, V]."""
    order = values.sort(dim=1, descending=True, stable=True).indices
    p = values.gather(1, order).softmax(1)
    kept = torch.ones_like(p, dtype=torch.bool)
    if call.top_k is not None:
        kept[:, call.top_k :] = False
    if call.top_p is not None:
        p = p.where(kept, 0.0)
        before = p.cumsum(1) - p
        kept &= before < call.top_p * p.sum(1, keepdim=True)
    if call.min_p:
        kept &= p >= call.min_p * p[:, :1]
    return torch.zeros_like(kept).scatter(1, order, kept)


def _race(scores: Tensor, noise: NoiseStream) -> Tensor:
    """Both heats of the Gumbel race over float64 scores l / T; int64 [N]."""
    num_rows, vocabulary = scores.shape
    width = min(TILE, vocabulary)
    scores = pad(scores, (0, -vocabulary % width), value=-torch.inf)
    tiles = scores.view(num_rows, -1, width)
    count = tiles.shape[1]
    index = torch.arange((count + 1) // 2, device=scores.device)[None]
    tile = (tiles.logsumexp(2) + _gumbel(noise, TILE_RACE, index)[:, :count]).argmax(1)
    inside = tiles[torch.arange(num_rows, device=scores.device), tile]
    pairs = torch.arange((width + 1) // 2, device=scores.device)
    index = tile[:, None] * (TILE // 2) + pairs
    token = (inside + _gumbel(noise, TOKEN_RACE, index)[:, :width]).argmax(1)
    return tile * width + token


def _gumbel(noise: NoiseStream, purpose: int, index: Tensor) -> Tensor:
    """Standard Gumbel variates -ln(-ln(1 - u)), u = (k + 1/2) 2**-64; float64."""
    high, low = noise.words(purpose, index)
    u = high.double() * 2.0**-32 + (low.double() + 0.5) * 2.0**-64
    return -(-(-u).log1p()).log()
