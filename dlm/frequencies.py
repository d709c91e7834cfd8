"""Count the tokens of a corpus: the background frequencies for PC-Sampler.

The file has the authors' format (arXiv:2508.13021): `num_token` and `p_baseline_dict`, token id ->
count. An extra key of ours records what was counted, so that an interrupted run can resume.
"""

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import chain, islice
from pathlib import Path
from typing import Any

from dlm.data.example import string_fields
from dlm.decoders.frequencies import COUNTS, TOTAL, parse_counts, read_json
from dlm.models.identity import rules
from dlm.options import integer, number

OURS = "dlm"  # our key, next to the authors' two
HEAD = 2**20  # leading bytes that identify a corpus file
BATCH_TEXTS = 256
BATCH_CHARACTERS = 2**20


@dataclass(slots=True)
class TokenCounts:
    """Token counts, and what they were counted in."""

    counts: Counter[int] = field(default_factory=Counter)  # by token id
    num_token: int = 0
    documents: int = 0  # documents counted, from the first on
    tokenizer: dict[str, Any] = field(default_factory=dict)  # `identify`
    corpus: list[dict[str, Any]] = field(default_factory=list)  # `Corpus.identify`

    def add(self, rows: Sequence[Sequence[int]]) -> None:
        """Add the token ids of some documents."""
        self.counts.update(chain.from_iterable(rows))
        self.num_token += sum(map(len, rows))
        self.documents += len(rows)


@dataclass(slots=True)
class Corpus:
    """Files of documents: the JSON objects of a `.jsonl`, or the lines of any other file."""

    files: Sequence[Path]
    text: str = "text"  # the key of a JSON object that holds its document
    bytes_read: int = 0

    def __post_init__(self) -> None:
        for file in self.files:
            # A pipe cannot be read twice, for `identify` or to resume.
            if file.exists() and not file.is_file():
                raise ValueError(f"corpus must be regular files, got {str(file)!r}")

    @property
    def size(self) -> int:
        """Total bytes of all files."""
        return sum(file.stat().st_size for file in self.files)

    def identify(self) -> list[dict[str, Any]]:
        """Facts that identify this corpus, independent of where its files are."""
        return [self._identify(file) for file in self.files]

    def _identify(self, file: Path) -> dict[str, Any]:
        with file.open("rb") as stream:
            head = sha256(stream.read(HEAD)).hexdigest()
        facts = {"file": file.name, "bytes": file.stat().st_size, "head": head}
        return facts | ({"field": self.text} if is_jsonl(file) else {})

    def __iter__(self) -> Iterator[str]:
        """The documents in order, read lazily; blank lines are skipped.

        Raises:
            ValueError: a line is not UTF-8, or a line of a `.jsonl` is no object with a text.
        """
        self.bytes_read = 0
        for file in self.files:
            with file.open("rb") as stream:
                for line_number, line in enumerate(stream, start=1):
                    self.bytes_read += len(line)
                    if line.strip():
                        yield self._document(line, file, f"{file}:{line_number}")

    def _document(self, line: bytes, file: Path, where: str) -> str:
        if is_jsonl(file):
            return string_fields(line, (self.text,), where)[self.text]
        try:
            return line.decode("utf-8-sig").rstrip("\r\n")
        except UnicodeError as error:
            raise ValueError(f"{where}: not UTF-8 ({error})") from None


def is_jsonl(file: Path) -> bool:
    """Whether the lines of a file are JSON objects, judging by its name."""
    return file.suffix.lower() == ".jsonl"


def count_tokens(
    tokenizer: Any,
    texts: Iterable[str],
    *,
    limit: int | None = None,
    out: Path | None = None,
    corpus: Sequence[dict[str, Any]] = (),
    name: str | None = None,
    save_every: float = 30.0,
    report: Callable[[TokenCounts], None] = lambda counts: None,
) -> TokenCounts:
    """Count the tokens of texts, each tokenized as it stands, in batches.

    No special token is added, but one that is spelled out in a text counts as such: end the
    documents with the end-of-text token if it needs a frequency. The authors' script is the same,
    except that it appends a space to each text.

    Args:
        tokenizer: of the model that will decode with the frequencies.
        texts: documents, read lazily. Must begin with the first document every time.
        limit: most documents to count; all if None.
        out: where to save, periodically and at the end. If the file exists, it holds the counts of
            the first documents, which are skipped.
        corpus: facts that identify the texts, as JSON; required with `out`.
        name: name of the tokenizer in `out`; its own name if None.
        save_every: seconds between two checkpoints.
        report: called after every batch. If it raises KeyboardInterrupt, the counts are saved
            before it propagates; other errors leave the last checkpoint as it was.

    Returns:
        The counts; they are the same whether or not the run was interrupted.

    Raises:
        ValueError: an option is invalid, the texts have no token, or `out` belongs to another
            tokenizer, to another corpus or holds more documents than `limit`.
    """
    number("save_every", save_every, least=0.0)
    if limit is not None:
        integer("limit", limit, least=1, most=2**63 - 1)
    if out is not None and not corpus:
        raise ValueError(f"out={str(out)!r} needs corpus, to know whether it goes on from there")
    total = start(out, identify(tokenizer, name), list(corpus))
    if limit is not None and total.documents > limit:
        raise ValueError(f"limit must be >= {total.documents}, which {str(out)!r} has, got {limit}")

    def keep() -> None:
        if out is not None and total.num_token:  # a table without tokens is invalid
            save(out, total)

    saved = time.monotonic()
    for batch in batches(remaining(texts, total.documents, limit)):
        total.add(encode(tokenizer, batch))
        try:
            report(total)
        except KeyboardInterrupt:
            keep()
            raise
        if time.monotonic() - saved >= save_every:
            keep()
            saved = time.monotonic()
    if not total.num_token:
        raise ValueError(f"the corpus must hold at least one token, got {total.documents} texts")
    keep()
    return total


def identify(tokenizer: Any, name: str | None = None) -> dict[str, Any]:
    """Facts that identify a tokenizer, independent of where it was loaded from."""
    named = tokenizer.name_or_path if name is None else name
    return {"name": named, "vocab_size": len(tokenizer), "digest": rules(tokenizer)}


def start(out: Path | None, tokenizer: dict[str, Any], corpus: list[dict[str, Any]]) -> TokenCounts:
    """The counts in `out`, or empty ones if it does not exist.

    Raises:
        ValueError: `out` was not made with this tokenizer and this corpus.
    """
    if out is None or not out.exists():
        return TokenCounts(tokenizer=tokenizer, corpus=corpus)
    total = load(out)
    # The name may differ: it can be a path.
    differ = [key for key in ("vocab_size", "digest") if total.tokenizer.get(key) != tokenizer[key]]
    if differ:
        raise ValueError(
            f"out={str(out)!r} was made with another tokenizer: {', '.join(differ)} differ, it has "
            f"{total.tokenizer or 'none on record'}, now {tokenizer}"
        )
    if total.corpus != corpus:
        old, new = next(
            (old, new)
            for old, new in zip([*total.corpus, None], [*corpus, None], strict=False)
            if old != new
        )
        raise ValueError(
            f"out={str(out)!r} was made from another corpus: it has {old or 'no more'}, "
            f"now {new or 'no more'}"
        )
    return total


def remaining(texts: Iterable[str], done: int, limit: int | None) -> Iterator[str]:
    """The texts after the first `done`, up to `limit` in total.

    Raises:
        ValueError: there are fewer than `done`.
    """
    stream = iter(texts)
    skipped = sum(1 for _ in islice(stream, done))
    if skipped < done:
        raise ValueError(f"the corpus must hold the {done} texts counted before, got {skipped}")
    return islice(stream, None if limit is None else limit - done)


def batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Group texts, fewer at a time if they are long, so that memory stays bounded."""
    batch: list[str] = []
    characters = 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if len(batch) == BATCH_TEXTS or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def encode(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Token ids of each text, without special tokens that it does not spell out."""
    rows: list[list[int]] = tokenizer(
        texts,
        add_special_tokens=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,  # documents may be longer than the model's context
    )["input_ids"]
    return rows


def save(path: Path, total: TokenCounts) -> None:
    """Write the authors' format together with what was counted, atomically."""
    record = {
        TOTAL: total.num_token,
        COUNTS[0]: {str(token): count for token, count in sorted(total.counts.items())},
        OURS: {
            "documents": total.documents,
            "tokenizer": total.tokenizer,
            "corpus": total.corpus,
        },
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    # One per process, so that two at once do not rename each other's partial file.
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with part.open("w", encoding="ascii") as stream:
            json.dump(record, stream)
            stream.flush()
            os.fsync(stream.fileno())  # or a power cut could leave an empty file under the new name
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def load(path: Path) -> TokenCounts:
    """Read a file from `save`, or the authors' own, which does not record what was counted.

    Raises:
        ValueError: the file does not exist, or has another format.
    """
    where = f"frequencies {str(path)!r}"
    record = read_json(path)
    if not isinstance(record, dict):
        raise ValueError(f"{where} must hold counts to go on from, got a {type(record).__name__}")
    num_token, counts = parse_counts(record, where)
    ours = record.get(OURS, {"documents": 0, "tokenizer": {}, "corpus": []})
    try:
        documents = integer(f"{where}: documents", ours["documents"], least=0, most=2**63 - 1)
        tokenizer, corpus = dict(ours["tokenizer"]), list(ours["corpus"])
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{where}: {OURS!r} must say what was counted: {error}") from error
    return TokenCounts(Counter(counts), num_token, documents, tokenizer, corpus)
