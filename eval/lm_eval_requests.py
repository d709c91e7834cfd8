"""lm-eval's requests as rows: keyed, grouped and reported on."""

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from lm_eval.api.instance import Instance  # type: ignore[import-untyped]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Row:
    """A generation request, as the decoder takes it."""

    tokens: tuple[int, ...]
    key: int  # of its noise
    until: tuple[str, ...]
    options: tuple[tuple[str, Any], ...]  # of `dlm.generate`, besides those that model_args set


def keys(requests: Sequence[Instance]) -> Iterator[int]:
    """An int64 row key for each request, so that its result does not depend on the other requests.

    The key hashes the document's number, the context, and the index of the copy among `repeats`.
    Copies that lm-eval adds to give all processes equal work get the keys of the first ones.
    """
    seen: Counter[int] = Counter()
    for request in requests:
        copy = seen[id(request)] % (request.repeats or len(requests))
        seen[id(request)] += 1
        text = f"{request.doc_id}\0{copy}\0{request.args[0]}"
        yield int.from_bytes(sha256(text.encode()).digest()[:8], "big", signed=True)


def groups(rows: Iterable[Row]) -> list[list[Row]]:
    """Group rows that have the same options and stop strings."""
    found: defaultdict[tuple[object, ...], list[Row]] = defaultdict(list)
    for row in rows:
        found[row.options, row.until].append(row)
    return list(found.values())


def report_shortened(count: int, total: int, positions: int) -> None:
    """Warn that contexts lost their beginning."""
    if count:
        log.warning(
            "%d of %d contexts lost their beginning to fit the model's %d positions",
            count,
            total,
            positions,
        )
