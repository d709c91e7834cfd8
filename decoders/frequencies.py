"""Background token frequencies for PC-Sampler, from a file, a list or a tensor.

Shapes: V vocabulary.
"""

import json
import re
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dlm.options import integer

TOTAL = "num_token"
COUNTS = ("p_baseline_dict", "token_frequency_dict")
"""Keys of the counts in the authors' files: their loader reads the first, their builder writes the
second."""

TOKEN_ID = re.compile(r"0|[1-9][0-9]{0,17}")
MOST_IDS = 2**24  # more than any vocabulary has; a stray id must not allocate terabytes


def read_frequencies(
    source: str | Path | Sequence[float] | Tensor, vocab_size: int | None = None
) -> Tensor:
    """Relative frequency of every token in a background corpus. float32 [V] on the CPU.

    For the authors' counts, f(v) = count(v) / num_token, and 1 / num_token for a token that is not
    listed. A list or a tensor holds f itself. Source: PC-Sampler (arXiv:2508.13021),
    `load_baseline` of the released code, which fixes V at 126464 and checks nothing.

    Args:
        source: path of a JSON file, or the frequencies themselves as a sequence of numbers or a
            floating-point tensor [V]. The file holds a list of V frequencies, or the authors'
            object with `num_token` and `p_baseline_dict` or `token_frequency_dict` (token id as
            text -> count).
        vocab_size: V, the rows of the model's vocabulary. A longer list is truncated if the removed
            part is padding: all its values are equal, and no kept token has a smaller one. With
            None a list keeps its length, and the authors' object ends at its largest listed id.

    Raises:
        ValueError: The file is not readable JSON; a count is not an int >= 0; the counts exceed
            `num_token`; an id is invalid or not below `vocab_size`; there are fewer frequencies
            than `vocab_size`, or more that are not padding; a frequency is outside [0, 1]; or no
            frequency is above 0.
    """
    if vocab_size is not None:
        integer("vocab_size", vocab_size, least=1)
    where = "frequencies"
    given: Any = source
    if isinstance(source, str | Path):
        where = f"frequencies {str(source)!r}"
        given = read_json(source)
        if isinstance(given, dict):
            return _divide(*parse_counts(given, where), vocab_size, where)
    return _fit(_as_vector(given, where), vocab_size, where)


def read_json(path: str | Path) -> Any:
    """Parse a JSON file of frequencies.

    Raises:
        ValueError: The file cannot be read, or is not JSON.
    """
    where = f"frequencies {str(path)!r}"
    try:
        return json.loads(Path(path).expanduser().read_bytes())
    except OSError as error:
        raise ValueError(f"{where} must be a readable file: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} must be a JSON file: {error}") from error


def parse_counts(given: Mapping[str, Any], where: str) -> tuple[int, dict[int, int]]:
    """Read `num_token` and the counts by token id from the authors' object.

    Args:
        given: the object, with either name of the counts; other keys are ignored.
        where: how error messages refer to it.

    Raises:
        ValueError: A key is missing; both names are given with different counts; an id is not an
            int; a count is not an int >= 0; no count is above 0; or the counts exceed `num_token`.
    """
    named = [key for key in COUNTS if key in given]
    if TOTAL not in given or not named:
        raise ValueError(
            f"{where} must hold a list, or an object with {TOTAL!r} and {COUNTS[0]!r} or "
            f"{COUNTS[1]!r}, got the keys {list(given)[:5]}"
        )
    total = integer(f"{where}: {TOTAL}", given[TOTAL], least=1, most=2**63 - 1)
    table = given[named[0]]
    if any(given[key] != table for key in named):
        raise ValueError(f"{where} must give its counts once: {' and '.join(named)} differ")
    if not isinstance(table, dict):
        raise ValueError(f"{where}: {named[0]} must map token ids to counts, got {table!r:.40}")
    for key in table:
        if not TOKEN_ID.fullmatch(key):
            raise ValueError(f"{where}: a token id must be an int >= 0, got {key!r:.40}")
    for key, count in table.items():
        if type(count) is not int or count < 0:
            raise ValueError(f"{where}: the count of {key} must be an int >= 0, got {count!r:.40}")
    counted = sum(table.values())
    if not 0 < counted <= total:
        raise ValueError(f"{where}: counts must add up to 1 .. {TOTAL}={total}, got {counted}")
    return total, dict(zip(map(int, table), table.values(), strict=True))


def _divide(total: int, counts: dict[int, int], vocab_size: int | None, where: str) -> Tensor:
    """f(v) = count(v) / num_token, and 1 / num_token where there is no count."""
    largest = max(counts)
    most = MOST_IDS if vocab_size is None else vocab_size
    if largest >= most:
        raise ValueError(f"{where} must list ids below the vocabulary size {most}, got {largest}")
    length = largest + 1 if vocab_size is None else vocab_size
    frequencies = torch.full((length,), 1 / total, dtype=torch.float64)
    frequencies[torch.tensor(list(counts))] = (
        torch.tensor(list(counts.values()), dtype=torch.float64) / total
    )
    return frequencies.float()


def _as_vector(given: Any, where: str) -> Tensor:
    """Convert numbers to a new float32 tensor [V]."""
    rule = f"{where} must be a path, a sequence of numbers or a floating tensor [V], got"
    if isinstance(given, Tensor):
        if given.ndim != 1 or not given.is_floating_point():
            raise ValueError(f"{rule} {given.dtype} {list(given.shape)}")
        return given.detach().to("cpu", torch.float32, copy=True)
    if not isinstance(given, Sequence) or isinstance(given, str | bytes):
        raise ValueError(f"{rule} {given!r:.40}")
    for kind in set(map(type, given)):
        if not issubclass(kind, Real) or issubclass(kind, bool):
            raise ValueError(f"{rule} one with {next(x for x in given if type(x) is kind)!r:.40}")
    try:
        return torch.tensor(list(map(float, given)), dtype=torch.float64).float()
    except OverflowError as error:
        raise ValueError(f"{where} must be finite: {error}") from error


def _fit(frequencies: Tensor, vocab_size: int | None, where: str) -> Tensor:
    """Check the frequencies and cut them to `vocab_size`."""
    bad = ~((frequencies >= 0) & (frequencies <= 1))  # true of a NaN as well
    if bad.any():
        token = int(bad.nonzero()[0])
        raise ValueError(
            f"{where} must be finite and in [0, 1], got {float(frequencies[token])} at id {token}"
        )
    length = len(frequencies)
    size = length if vocab_size is None else vocab_size
    if length < size:
        raise ValueError(f"{where} must cover the vocabulary size {size}, got {length}")
    kept, cut = frequencies[:size], frequencies[size:]
    if not kept.any():
        raise ValueError(f"{where} must have one above 0, got {len(kept)} without")
    if len(cut) and not cut.min() == cut.max() <= kept.min():
        raise ValueError(
            f"{where} must be {size}, the vocabulary size, or more by padding, got {length}"
        )
    return kept
