"""Background token frequencies: counting a corpus, and going on where a run died."""

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

import dlm
from dlm import frequencies
from dlm.data.tokenizer import build_tokenizer
from dlm.decoders.frequencies import COUNTS, read_frequencies
from dlm.frequencies import Corpus, TokenCounts, batches, count_tokens, identify, load, save

TOKENIZER = AutoTokenizer.from_pretrained(Path(dlm.__file__).parent / "assets" / "tiny")
TEXTS = [f"text {n}: {n} + {n * n} = {n + n * n} <|endoftext|>" for n in range(40)]
NAMED: list[dict[str, Any]] = [{"file": "these"}]


def write(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


# Counting


def by_hand(texts: Sequence[str]) -> Counter[int]:
    rows = [TOKENIZER(text, add_special_tokens=False)["input_ids"] for text in texts]
    return Counter(token for row in rows for token in row)


def test_counts_are_those_of_each_text_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = by_hand(TEXTS)
    for size in (1, 7, 1000):
        monkeypatch.setattr(frequencies, "BATCH_TEXTS", size)
        total = count_tokens(TOKENIZER, iter(TEXTS))
        assert (total.counts, total.documents) == (expected, len(TEXTS))
        assert total.num_token == expected.total()
    assert expected[TOKENIZER.eos_token_id] == len(TEXTS)  # spelled out, so it counts


def test_texts_are_asked_for_a_batch_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frequencies, "BATCH_TEXTS", 5)
    monkeypatch.setattr(frequencies, "BATCH_CHARACTERS", 30)
    asked: list[str] = []

    def texts() -> Iterator[str]:
        for text in ("a" * 29, "b", "c" * 99, *"defghijk"):
            asked.append(text)
            yield text

    seen = []
    for batch in batches(texts()):
        assert asked[-1] == batch[-1]
        seen.append(len(batch))
    assert seen == [2, 1, 5, 3]


def test_limit_counts_the_first(tmp_path: Path) -> None:
    assert count_tokens(TOKENIZER, TEXTS, limit=3).counts == by_hand(TEXTS[:3])
    out = tmp_path / "f.json"
    count_tokens(TOKENIZER, TEXTS, limit=3, out=out, corpus=NAMED)
    with pytest.raises(ValueError, match=r"limit must be >= 3, .*f\.json' has, got 2"):
        count_tokens(TOKENIZER, TEXTS, limit=2, out=out, corpus=NAMED)
    longer = count_tokens(TOKENIZER, TEXTS, limit=9, out=out, corpus=NAMED)
    assert longer.counts == by_hand(TEXTS[:9])


def test_the_file_is_the_authors_with_a_key_more(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "f.json"
    total = count_tokens(TOKENIZER, TEXTS, out=out, corpus=NAMED, name="mine")
    record = json.loads(out.read_text())
    assert record["num_token"] == sum(record["p_baseline_dict"].values()) == total.num_token
    assert {int(token): count for token, count in record["p_baseline_dict"].items()} == total.counts
    assert list(record["p_baseline_dict"]) == [str(token) for token in sorted(total.counts)]
    assert record["dlm"]["documents"] == len(TEXTS)
    assert record["dlm"]["tokenizer"]["name"] == "mine"
    assert record["dlm"]["corpus"] == NAMED
    f = read_frequencies(out, len(TOKENIZER))
    expected = torch.full((len(TOKENIZER),), 1 / total.num_token)
    for token, count in total.counts.items():
        expected[token] = count / total.num_token
    assert torch.equal(f, expected)
    assert load(out) == total
    assert [path.name for path in out.parent.iterdir()] == ["f.json"]


def test_the_authors_own_file_loads_but_does_not_go_on(tmp_path: Path) -> None:
    path = write(tmp_path / "f.json", {"num_token": 9, COUNTS[1]: {"4": 7}})
    assert load(path) == TokenCounts(Counter({4: 7}), 9)
    with pytest.raises(ValueError, match=r"another tokenizer: .* it has none on record"):
        count_tokens(TOKENIZER, TEXTS, out=path, corpus=NAMED)


# Going on


def cut_off(after: int, error: BaseException) -> Iterator[str]:
    yield from TEXTS[:after]
    raise error


@pytest.mark.parametrize("save_every", [0.0, 1e9])
@pytest.mark.parametrize("after", [0, 1, 6, 14, 39])
def test_a_run_that_died_gives_the_same_file(
    after: int, save_every: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frequencies, "BATCH_TEXTS", 3)
    whole, parts = tmp_path / "whole.json", tmp_path / "parts.json"
    count_tokens(TOKENIZER, TEXTS, out=whole, corpus=NAMED)
    with pytest.raises(OSError, match="gone"):
        count_tokens(
            TOKENIZER,
            cut_off(after, OSError("gone")),
            out=parts,
            corpus=NAMED,
            save_every=save_every,
        )
    kept = after // 3 * 3 if save_every == 0 else 0
    assert (load(parts).documents if parts.exists() else 0) == kept
    seen: list[int] = []
    count_tokens(
        TOKENIZER,
        TEXTS,
        out=parts,
        corpus=NAMED,
        report=lambda total: seen.append(total.documents),
    )
    assert seen[0] == min(kept + 3, len(TEXTS))
    assert parts.read_bytes() == whole.read_bytes()
    count_tokens(TOKENIZER, TEXTS, out=parts, corpus=NAMED)  # nothing is left to count
    assert parts.read_bytes() == whole.read_bytes()


def test_an_interruption_that_report_raises_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frequencies, "BATCH_TEXTS", 3)
    out = tmp_path / "f.json"

    def stop(total: TokenCounts) -> None:
        if total.documents == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        count_tokens(TOKENIZER, TEXTS, out=out, corpus=NAMED, report=stop)
    assert load(out).counts == by_hand(TEXTS[:9])


def test_a_save_that_fails_leaves_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "f.json"
    save(out, TokenCounts(Counter({1: 2}), 2, 1))
    before = out.read_bytes()

    def fail(record: Any, stream: Any) -> None:
        stream.write("{")
        raise OSError("disk full")

    monkeypatch.setattr(json, "dump", fail)
    with pytest.raises(OSError, match="disk full"):
        save(out, TokenCounts(Counter({1: 3}), 3, 2))
    assert out.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["f.json"]


def test_two_at_once_write_one_whole_file(tmp_path: Path) -> None:
    """The other one saves while this one is about to."""
    out = tmp_path / "f.json"
    mine, other = TokenCounts(Counter({1: 2}), 2, 1), TokenCounts(Counter({1: 3}), 3, 2)
    sync = os.fsync

    def between(number: int) -> None:
        sync(number)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", sync)
            patch.setattr(os, "getpid", lambda: 0)
            save(out, other)
        assert load(out) == other

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", between)
        save(out, mine)
    assert load(out) == mine
    assert [path.name for path in tmp_path.iterdir()] == ["f.json"]


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "f.json"
    count_tokens(TOKENIZER, TEXTS, out=out, corpus=NAMED)
    for vocab_size, differ in ((len(TOKENIZER), "digest differ"), (400, "vocab_size, digest")):
        other = build_tokenizer([*TEXTS, "the of and to in is that for it as was"], vocab_size)
        if vocab_size == len(TOKENIZER):
            other.add_tokens([f"<{n}>" for n in range(vocab_size - len(other))])
        with pytest.raises(ValueError, match=f"f.json' was made with another tokenizer: {differ}"):
            count_tokens(other, TEXTS, out=out, corpus=NAMED)


def test_a_tokenizer_is_the_same_by_another_name_and_after_use(tmp_path: Path) -> None:
    facts = identify(TOKENIZER)
    TOKENIZER.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    again(TEXTS, padding=True, truncation=True, max_length=4)
    assert identify(again, "copy") == facts | {"name": "copy"}


def test_another_corpus_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "f.json"
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    objects = write(tmp_path / "a" / "y.jsonl", '{"text": "two", "body": "two"}')
    files = [write(tmp_path / "a" / "x.txt", "one\n"), objects]
    corpus = Corpus(files)
    count_tokens(TOKENIZER, corpus, out=out, corpus=corpus.identify())
    edited = write(tmp_path / "b" / "x.txt", "one\n")
    moved = Corpus([edited, objects])  # the same bytes elsewhere
    count_tokens(TOKENIZER, moved, out=out, corpus=moved.identify())
    for content, files_now, key in (
        ("two\n", [edited, objects], "text"),
        ("one\ntwo\n", [edited, objects], "text"),
        ("one\n", [objects, edited], "text"),
        ("one\n", [edited], "text"),
        ("one\n", [edited, objects, edited], "text"),
        ("one\n", [edited, objects], "body"),
    ):
        write(edited, content)
        other = Corpus(files_now, key)
        with pytest.raises(ValueError, match=r"f\.json' was made from another corpus: it has"):
            count_tokens(TOKENIZER, other, out=out, corpus=other.identify())


@pytest.mark.parametrize(
    ("message", "texts", "options"),
    [
        ("limit must be an int >= 1, got 0", TEXTS, {"limit": 0}),
        ("save_every must be a finite number >= 0, got -1", TEXTS, {"save_every": -1}),
        ("needs corpus", TEXTS, {"out": Path("f.json")}),
        ("at least one token, got 0 texts", [], {}),
        ("at least one token, got 2 texts", ["", ""], {}),
    ],
)
def test_bad_options_are_refused(message: str, texts: Any, options: Any) -> None:
    with pytest.raises(ValueError, match=message):
        count_tokens(TOKENIZER, texts, **options)


def test_fewer_texts_than_before_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "f.json"
    count_tokens(TOKENIZER, TEXTS, out=out, corpus=NAMED)
    with pytest.raises(ValueError, match="must hold the 40 texts counted before, got 39"):
        count_tokens(TOKENIZER, TEXTS[:39], out=out, corpus=NAMED)


@pytest.mark.parametrize(
    ("message", "content"),
    [
        ("must hold counts to go on from, got a list", [0.5, 0.5]),
        ("'dlm' must say what was counted", {"num_token": 1, COUNTS[0]: {"1": 1}, "dlm": {}}),
        ("'dlm' must say what was counted", {"num_token": 1, COUNTS[0]: {"1": 1}, "dlm": 1}),
    ],
)
def test_what_cannot_go_on_is_refused(message: str, content: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        load(write(tmp_path / "f.json", content))


# Corpora


def test_documents_of_a_corpus(tmp_path: Path) -> None:
    plain = tmp_path / "a.txt"
    plain.write_bytes("\ufeffone \r\n\n  two\x0bthree\n\u00e9".encode())
    objects = write(tmp_path / "b.JSONL", '{"text": "four\\nfive", "id": 1}\n\n{"text": ""}\n')
    corpus = Corpus([plain, objects, plain])
    lines = ["one ", "  two\x0bthree", "\u00e9"]
    assert list(corpus) == [*lines, "four\nfive", "", *lines]
    assert list(corpus) == [*lines, "four\nfive", "", *lines]  # from the first one again
    assert corpus.bytes_read == corpus.size == 2 * plain.stat().st_size + objects.stat().st_size


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"fine\n\xff\n", ":2: not UTF-8"),
        ("a.jsonl", b'{"text": "a"}\n{"text"\n', ":2: not a line of JSON"),
        (
            "a.jsonl",
            b'{"text": "a"}\n\n{"body": "b"}\n',
            ":3: must have 'text', got the keys 'bo",
        ),
        ("a.jsonl", b'{"text": "\\ud800"}\n', ":1: 'text' must be text that UTF-8 can hold"),
        ("a.jsonl", b'["text"]\n', ":1: expected a JSON object, got list"),
    ],
)
def test_a_bad_line_is_named(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(ValueError, match=name) as error:
        list(Corpus([file]))
    assert message in str(error.value)


def test_only_files_are_a_corpus(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="corpus must be regular files, got"):
        Corpus([tmp_path])
    with pytest.raises(FileNotFoundError):
        Corpus([tmp_path / "none"]).identify()
