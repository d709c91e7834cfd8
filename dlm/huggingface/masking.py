"""Masked batches for transformers' Trainer.

Shapes: B rows, L tokens, N tokens of an attention block.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, distributed
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import get_worker_info

from dlm.models.model import block_causal
from dlm.models.spec import ModelSpec
from dlm.options import boolean, integer
from dlm.training.loss import (
    harmonic_counts,
    harmonic_numbers,
    mask_counts,
    mask_exactly,
    stratified_levels,
)

NO_LOSS: Final = -100  # label of a token without loss, as in transformers


@dataclass(frozen=True, slots=True)
class MaskingCollator:
    """Collates batches with some tokens masked, whose mean loss is the masked-diffusion objective.

    Of the n maskable tokens of a row, k are masked, with p(k) = (1 / k) / (1 + 1/2 + ... + 1/n).
    With k uniform in 1 to n, -ln p(row) is at most E[(n / k) sum_masked -ln p] (Nie et al. 2025,
    arXiv:2502.09992, eq. 6). Drawing k in proportion to 1 / k instead removes the weight from the
    sum: E[sum over masked tokens] / E[their number] is then that bound in nats per token, with rows
    of different lengths weighted by n / (1 + ... + 1/n).

    What a forward pass returns, and Trainer accumulates, is a ratio of two random sums. If it is
    over few rows, it is too low on average. With `rows_per_step`, one row of each step, drawn in
    proportion to its weight, has k uniform. This removes the bias if a batch is a whole step
    (Lahiri 1951; Midzuno 1952), and most of it if a step has several batches.

    If attention is in blocks, each row is given twice, masked and then clean: block b of the masked
    copy sees itself and the blocks before b of the clean copy, as decoding sees them (Arriola et
    al. 2025, arXiv:2503.09573). Given that a block has masks, their number has the distribution of
    k within the block, so that the mean is the bound block by block.

    Args:
        spec: facts of the model, `dlm.as_model(network).spec`.
        end_as_content: fill short rows with end of text that is masked and learned like their own
            tokens (LLaDA's fine-tuning, Nie et al. 2025). False fills them with padding that
            nothing attends to.
        pad_to_multiple_of: pad batches to a multiple of this many tokens, but not beyond the
            model's maximum length.
        rows_per_step: rows in one step of the optimiser, over all devices and accumulated batches;
            in an evaluation, rows in one batch.
        generator: source of the noise, on the CPU. None uses torch's own, which Trainer seeds, with
            different noise in each process of `torch.distributed`. Cannot be combined with workers
            of a `DataLoader`.

    Raises:
        ValueError: `spec` is something else, the family cannot be trained this way, or an option is
            out of range.
    """

    spec: ModelSpec
    end_as_content: bool = True
    pad_to_multiple_of: int = 1
    rows_per_step: int | None = None
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.spec, ModelSpec):
            raise ValueError(
                "spec must be the facts of a model, such as dlm.as_model(network).spec, "
                f"got a {type(self.spec).__name__}"
            )
        if self.spec.causal or self.spec.anchored:
            raise ValueError(
                f"{self.spec.family} cannot be trained so: where its blocks begin is not in the ids"
            )
        if boolean("end_as_content", self.end_as_content) and not self.spec.stop_ids:
            raise ValueError(
                f"end_as_content must be False for {self.spec.family}, which knows no end of text"
            )
        integer("pad_to_multiple_of", self.pad_to_multiple_of, least=1)
        if self.rows_per_step is not None:
            integer("rows_per_step", self.rows_per_step, least=1)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Build the inputs of a forward pass: int64 `input_ids` and `labels`, a mask, positions.

        Args:
            rows: each has `input_ids`, and `labels` if not every token may be masked: the same ids,
                with -100 at tokens that are only seen, such as a prompt. Other columns are ignored.

        Raises:
            ValueError: a row is too long, has no token to mask, or has labels that are not its
                tokens; or there is a generator that each worker of a `DataLoader` would repeat.
        """
        if not rows:
            raise ValueError(f"rows must hold one at least, got {rows!r}")
        noise = self.noise()
        pairs = [self.read(row, number) for number, row in enumerate(rows)]
        clean = self.padded([ids for ids, _ in pairs], self.spec.eos_id)
        maskable = self.padded([free for _, free in pairs], self.end_as_content)
        count = self.counts(maskable.sum(-1), noise)
        hidden = mask_exactly(maskable, count, torch.rand(clean.shape, generator=noise))
        masked = clean.masked_fill(hidden, self.spec.mask_id)
        labels = clean.masked_fill(~hidden, NO_LOSS)
        ones = [torch.ones_like(ids) for ids, _ in pairs]
        valid = self.padded(ones, int(self.end_as_content))
        if self.spec.grid is None:
            return {"input_ids": masked, "labels": labels, "attention_mask": valid}
        return doubled(masked, clean, labels, valid.bool(), self.spec.grid, self.spec.shift)

    def read(self, row: Mapping[str, Any], number: int) -> tuple[Tensor, Tensor]:
        """Ids of a row, int64 [L], and which of them may be masked, bool [L]."""
        if "input_ids" not in row:
            raise ValueError(f"input_ids must be in each row, got {sorted(row)} in row {number}")
        ids = torch.as_tensor(row["input_ids"])
        labels = torch.as_tensor(row.get("labels", ids))
        if ids.dim() != 1 or ids.is_floating_point() or labels.shape != ids.shape:
            raise ValueError(
                f"input_ids and labels must be ids, as many of both, got {list(ids.shape)} and "
                f"{list(labels.shape)} in row {number}"
            )
        if len(ids) > self.spec.max_length:
            raise ValueError(
                f"input_ids must fit the model's {self.spec.max_length} positions, "
                f"got {len(ids)} in row {number}"
            )
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < self.spec.vocab_size:
            raise ValueError(
                f"input_ids must be below the vocabulary size {self.spec.vocab_size} and >= 0, "
                f"got {int(ids.min())} to {int(ids.max())} in row {number}"
            )
        free = labels != NO_LOSS
        if not torch.equal(labels[free], ids[free]) or (ids[free] == self.spec.mask_id).any():
            raise ValueError(
                f"labels must be -100 or the id in input_ids, and not the mask's, in row {number}: "
                "tokens are masked here"
            )
        if self.spec.shift:
            free[:1] = False  # no output predicts it
        if not free.any():
            raise ValueError(f"labels must name a token to mask, got none in row {number}")
        return ids.long(), free

    def noise(self) -> torch.Generator:
        """The noise generator of one batch."""
        if self.generator is not None:
            if get_worker_info() is not None:
                raise ValueError(
                    "generator must be None with workers of a DataLoader, each of which would "
                    f"repeat it, got {self.generator!r}"
                )
            return self.generator
        seed = int(torch.randint(1 << 62, ()))
        here = distributed.is_available() and distributed.is_initialized()
        return torch.Generator().manual_seed(seed + (distributed.get_rank() if here else 0))

    def counts(self, lengths: Tensor, noise: torch.Generator) -> Tensor:
        """Number of tokens to mask in each row, int64 [B], out of `lengths` maskable ones."""
        chance = 0.0 if self.rows_per_step is None else len(lengths) / self.rows_per_step
        first, second = torch.rand(2, 1, generator=noise, dtype=torch.float64)
        offset = sized_offset(lengths, noise) if first < chance else second
        return harmonic_counts(lengths, stratified_levels(len(lengths), offset))

    def padded(self, rows: list[Tensor], value: int) -> Tensor:
        """Stack rows, padded on the right with `value`."""
        found = pad_sequence(rows, batch_first=True, padding_value=value)
        width = -(-found.shape[1] // self.pad_to_multiple_of) * self.pad_to_multiple_of
        missing = min(width, self.spec.max_length) - found.shape[1]
        return pad(found, (0, missing), value=value)


def sized_offset(lengths: Tensor, noise: torch.Generator) -> Tensor:
    """Offset of stratified levels, float64 [1], drawn in proportion to the tokens they mask.

    One row, drawn in proportion to its expected masks n / H_n, has a uniform count; the others
    follow from it.
    """
    harmonic = harmonic_numbers(int(lengths.max()))
    row = torch.multinomial(lengths / harmonic[lengths - 1], 1, generator=noise)
    first, second = torch.rand(2, 1, generator=noise, dtype=torch.float64)
    count = mask_counts(lengths[row], first)
    level = (harmonic[count - 1] - second / count) / harmonic[lengths[row] - 1]
    return torch.as_tensor((level - row / len(lengths)) % 1)


def doubled(
    masked: Tensor, clean: Tensor, labels: Tensor, valid: Tensor, block_size: int, shift: bool
) -> dict[str, Tensor]:
    """Masked rows followed by the clean ones, all [B, L], for one forward pass over 2 L tokens.

    A masked block sees itself and the clean blocks before it. A clean block sees itself and the
    clean blocks before it. If the output at i predicts token i + 1, the clean block before predicts
    the first token of a block, as in decoding, so that its label is among the clean tokens.

    Args:
        masked: int64, the rows to decode.
        clean: int64, the same rows without masks.
        labels: int64, -100 for no loss.
        valid: bool, False at padding.
        block_size: tokens of a block.
        shift: whether the output at i predicts token i + 1.
    """
    rows, length = masked.shape
    column = torch.arange(length)
    first = (column % block_size == 0) & torch.tensor(shift)
    behind = labels.masked_fill(~first, NO_LOSS)
    sees = block_causal(column[None], column[None], block_size)[0]  # query, key
    same = sees & sees.T
    upper = torch.cat((same, sees & ~same), 1)
    lower = torch.cat((torch.zeros_like(sees), sees), 1)
    seen = torch.cat((upper, lower)) & valid.repeat(1, 2)[:, None]
    return {
        "input_ids": torch.cat((masked, clean), 1),
        "labels": torch.cat((labels.masked_fill(first, NO_LOSS), behind), 1),
        "attention_mask": seen[:, None],
        "position_ids": column.repeat(rows, 2),
    }
