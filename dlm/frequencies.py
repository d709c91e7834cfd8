"""Count the tokens of a corpus: the background frequencies of PC-Sampler.

The file is the authors' (arXiv:2508.13021): `num_token` and `p_baseline_dict`, token id -> count.
A key of our own beside them says what was counted, so that a run that died goes on.
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

OURS = "dlm"  # the key beside the authors' two
HEAD = 2**20  # bytes of a corpus file that tell it from another
BATCH_TEXTS = 256
BATCH_CHARACTERS = 2**20


@dataclass(slots=True)
class TokenCounts:
    """How often each token came up, and in what."""

    counts: Counter[int] = field(default_factory=Counter)  # by token id
    num_token: int = 0
    documents: int = 0  # texts counted, from the first on
    tokenizer: dict[str, Any] = field(default_factory=dict)  # `identify`
    corpus: list[dict[str, Any]] = field(default_factory=list)  # `Corpus.identify`

    def add(self, rows: Sequence[Sequence[int]]) -> None:
        """Take the token ids of some documents in."""
        self.counts.update(chain.from_iterable(rows))
        self.num_token += sum(map(len, rows))
        self.documents += len(rows)


@dataclass(slots=True)
class Corpus:
    """Files of documents: JSON objects of a `.jsonl`, the lines of any other file."""

    files: Sequence[Path]
    text: str = "text"  # the key of a JSON object that holds its document
    bytes_read: int = 0

    def __post_init__(self) -> None:
        for file in self.files:
            # A pipe cannot be read a second time, neither for `identify` nor to go on.
            if file.exists() and not file.is_file():
                raise ValueError(f"corpus must be regular files, got {str(file)!r}")

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.stat().st_size for file in self.files)

    def identify(self) -> list[dict[str, Any]]:
        """What tells this corpus from another, wherever its files lie."""
        return [self._identify(file) for file in self.files]

    def _identify(self, file: Path) -> dict[str, Any]:
        with file.open("rb") as stream:
            head = sha256(stream.read(HEAD)).hexdigest()
        facts = {"file": file.name, "bytes": file.stat().st_size, "head": head}
        return facts | ({"field": self.text} if is_jsonl(file) else {})

    def __iter__(self) -> Iterator[str]:
        """The documents in order, read as they are asked for; blank lines are none.

        Raises:
            ValueError: a line that is not UTF-8, or of a `.jsonl` and no object with a text.
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
    """Whether the lines of a file are JSON objects, by its name."""
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

    No special token is added, but one spelled out in a text counts as such: end the documents
    with the end of text if it shall have a frequency. The authors' script, which is the same
    otherwise, puts a space behind each text.

    Args:
        tokenizer: of the model that shall decode with the frequencies.
        texts: documents, asked for as they are needed. Must start over from the first one.
        limit: most documents to count; all if absent.
        out: where to save, every so often and at the end. If it is there already, it holds the
            counts of the first documents, which are skipped.
        corpus: what tells the texts from others, as JSON; needed with `out`.
        name: what to call the tokenizer in `out`; its own name if absent.
        save_every: seconds between two checkpoints.
        report: called after every batch. An interruption that it raises is saved before it goes
            on; another error leaves the last checkpoint as it was.

    Returns:
        The counts, the same whether or not the run was interrupted.

    Raises:
        ValueError: an option out of its rule, no token in the texts, or an `out` of another
            tokenizer, of another corpus or with more documents than `limit`.
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
        if out is not None and total.num_token:  # without a token it is no table of frequencies
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
    """What tells a tokenizer from another, wherever it was loaded from."""
    named = tokenizer.name_or_path if name is None else name
    return {"name": named, "vocab_size": len(tokenizer), "digest": rules(tokenizer)}


def start(out: Path | None, tokenizer: dict[str, Any], corpus: list[dict[str, Any]]) -> TokenCounts:
    """The counts of `out`, or none.

    Raises:
        ValueError: `out` was not made from this tokenizer and this corpus.
    """
    if out is None or not out.exists():
        return TokenCounts(tokenizer=tokenizer, corpus=corpus)
    total = load(out)
    # A tokenizer may be called by another name: by a path, say.
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
    """The texts behind the first `done`, up to the first `limit`.

    Raises:
        ValueError: there are not that many.
    """
    stream = iter(texts)
    skipped = sum(1 for _ in islice(stream, done))
    if skipped < done:
        raise ValueError(f"the corpus must hold the {done} texts counted before, got {skipped}")
    return islice(stream, None if limit is None else limit - done)


def batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Texts a few at a time: fewer where they are long, so that memory stays bounded."""
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
    """Token ids of each text, with no special token that it does not spell out."""
    rows: list[list[int]] = tokenizer(
        texts,
        add_special_tokens=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,  # documents may be longer than the model's context
    )["input_ids"]
    return rows


def save(path: Path, total: TokenCounts) -> None:
    """Write the authors' file with what it was made from, in one atomic step."""
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
    # Its own for each process: of two at once, one would rename what the other is writing.
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with part.open("w", encoding="ascii") as stream:
            json.dump(record, stream)
            stream.flush()
            os.fsync(stream.fileno())  # else a power cut may leave the new name on no data
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def load(path: Path) -> TokenCounts:
    """Read what `save` wrote, or the authors' own file, which does not say what it was made from.

    Raises:
        ValueError: no such file, or one of another form.
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
