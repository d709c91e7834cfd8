"""Log-probabilities of true tokens at masked positions.

Shapes: B rows of one forward pass, L tokens of the longest, n answer tokens, K tokens to score,
V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from dlm.guidance import guided
from dlm.kernels import Suppressed, token_statistics
from dlm.models.model import Model, block_causal, causal_context, masks_last
from dlm.options import number
from dlm.settings import LARGEST_SCALE


@dataclass(frozen=True, slots=True)
class ScoredRows:
    """Prompts, answers and closing tokens, as the network sees them."""

    tokens: Tensor  # int64 [B, L], right-padded
    given: Tensor  # int64 [B or 1], tokens of the prompt
    start: Tensor  # int64 [B or 1], start of the scored span
    end: Tensor  # int64 [B or 1], one past the last token of that span
    length: Tensor | None = None  # int64 [B], tokens of the row; None if there is no padding


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of K tokens."""

    log_probability: Tensor  # float32 [K], nats
    best: Tensor  # bool [K], whether no other token is likelier


class Reader:
    """Scores tokens by forward passes over rows."""

    def __init__(self, model: Model, cfg_scale: float) -> None:
        """Take a model, and the scale of classifier-free guidance.

        Raises:
            ValueError: the scale is out of range.
        """
        self.model = model
        self.cfg_scale = number("cfg_scale", cfg_scale, least=-1.0, most=LARGEST_SCALE)
        if model.spec.reordered and self.cfg_scale:
            raise ValueError(f"cfg_scale must be 0 for {model.spec.family}, got {cfg_scale}")
        banned = torch.zeros(model.spec.vocab_size, dtype=torch.bool, device=model.device)
        banned[torch.tensor(model.spec.banned, device=model.device)] = True
        self.banned = Suppressed.of(banned)

    def __call__(self, rows: ScoredRows, line: Tensor, column: Tensor, token: Tensor) -> Scores:
        """Score the tokens `token` at rows `line` and columns `column`, int64 [K] all three."""
        columns = torch.arange(rows.tokens.shape[1], device=rows.tokens.device)[None]
        valid = None if rows.length is None else columns < rows.length[:, None]
        seen = None  # bool [B or 1, L, L], unless the model masks by itself
        spec = self.model.spec
        if spec.causal:
            seen = causal_context(columns, columns, rows.start, rows.end)
        elif spec.anchored and spec.block_size is not None:
            seen = block_causal(columns, columns, spec.block_size, rows.given)
        if seen is not None and valid is not None:
            seen = seen & valid[:, None]

        def logits(tokens: Tensor) -> Tensor:
            attend = seen
            if seen is not None and spec.reordered:
                masked = tokens == spec.mask_id
                attend = seen & masks_last(columns, columns, masked, masked)
            hidden = self.model.hidden(tokens, columns, valid, attend=attend)
            return self.model.logits(hidden[line, column])

        made = logits(rows.tokens)
        if self.cfg_scale:
            answer = (columns >= rows.given[:, None]) & (columns < rows.end[:, None])
            free = logits(rows.tokens.masked_fill(~answer, self.model.spec.mask_id))
            made = guided(made, free, self.cfg_scale)
        wanted = {"token_log_probability"}
        found = token_statistics(made, wanted, suppressed=self.banned, tokens=token)
        assert found.token_log_probability is not None
        return Scores(found.token_log_probability, found.sampled == token)


class Scorer:
    """Scores the end of one answer, in forward passes of its own."""

    def __init__(
        self, reader: Reader, prompt: list[int], answer: list[int], begin: int, batch_size: int
    ) -> None:
        """Take an answer, the index of its first scored token, and rows per forward pass."""
        spec, device = reader.model.spec, reader.model.device
        self.reader = reader
        self.batch_size = batch_size
        self.mask_id = spec.mask_id
        self.row = torch.tensor([*prompt, *answer, *spec.suffix], device=device)
        ends = (len(prompt), len(prompt) + begin, len(prompt) + len(answer))
        self.given, self.start, self.end = (torch.tensor([at], device=device) for at in ends)
        self.span = slice(*ends[1:])

    def scores(self, masked: Tensor, scored: Tensor) -> Tensor:
        """Score true tokens: ln p where scored, 0 elsewhere; float32 [S, n].

        Args:
            masked: bool [S, n], tokens hidden from the network.
            scored: bool [S, n], which of them to score.
        """
        pieces = zip(masked.split(self.batch_size), scored.split(self.batch_size), strict=True)
        return torch.cat([self.forward(*piece) for piece in pieces])

    def forward(self, masked: Tensor, scored: Tensor) -> Tensor:
        """The same for the rows of one forward pass."""
        tokens = self.row.repeat(masked.shape[0], 1)
        tokens[:, self.span].masked_fill_(masked, self.mask_id)
        line, column = scored.nonzero(as_tuple=True)
        rows = ScoredRows(tokens, self.given, self.start, self.end)
        token = self.row[self.span][column]
        found = self.reader(rows, line, column + self.start, token).log_probability
        out = torch.zeros(scored.shape, dtype=found.dtype, device=found.device)
        return out.index_put((line, column), found)
