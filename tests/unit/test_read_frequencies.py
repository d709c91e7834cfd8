"""Background token frequencies: what the decoder reads them from."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dlm.decoders.frequencies import COUNTS, read_frequencies

GOLDEN = Path(__file__).parents[1] / "golden" / "background_frequency.json"


def write(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_golden_file() -> None:
    expected = torch.tensor(json.loads(GOLDEN.read_text()), dtype=torch.float32)
    for vocab_size in (None, 512):
        got = read_frequencies(GOLDEN, vocab_size)
        assert got.dtype == torch.float32
        assert torch.equal(got, expected)
    assert torch.equal(read_frequencies(str(GOLDEN), 512), expected)


@pytest.mark.parametrize("key", COUNTS)
def test_counts_are_divided_and_unseen_tokens_come_up_once(key: str, tmp_path: Path) -> None:
    counts = {"3": 30, "0": 50, "6": 1, "5": 0}
    path = write(tmp_path / "f.json", {"num_token": 100, key: counts, "metadata": {"any": 1}})
    expected = torch.tensor([0.5, 0.01, 0.01, 0.3, 0.01, 0.0, 0.01, 0.01])
    assert torch.equal(read_frequencies(path, 8), expected)
    assert torch.equal(read_frequencies(path), expected[:7])  # up to the largest id listed


def test_both_keys_may_say_the_same(tmp_path: Path) -> None:
    content = {"num_token": 4} | {key: {"1": 4} for key in COUNTS}
    path = write(tmp_path / "f.json", content)
    assert read_frequencies(path, 2).tolist() == [0.25, 1.0]


@given(
    counts=st.dictionaries(st.integers(0, 40), st.integers(1, 10**9), min_size=1),
    rest=st.integers(0, 10**9),
)
def test_doubling_everything_changes_no_seen_token(
    counts: dict[int, int], rest: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("counts")
    total = sum(counts.values()) + rest
    table = {str(token): count for token, count in counts.items()}
    twice = {token: 2 * count for token, count in table.items()}
    once = write(folder / "1.json", {"num_token": total, COUNTS[0]: table})
    double = write(folder / "2.json", {"num_token": 2 * total, COUNTS[0]: twice})
    seen = sorted(counts)
    f, g = read_frequencies(once, 41), read_frequencies(double, 41)
    assert torch.equal(f[seen], g[seen])
    assert torch.equal(f[seen], torch.tensor([counts[t] / total for t in seen]))
    unseen = [token for token in range(41) if token not in counts]
    assert (f[unseen] == torch.tensor(1 / total)).all()
    assert (g[unseen] == torch.tensor(1 / (2 * total))).all()


def test_lists_and_tensors_hold_the_frequencies_themselves(tmp_path: Path) -> None:
    values = [0.5, 0, 1e-12, 0.25]
    expected = torch.tensor(values)
    tensor = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    for source in (values, tuple(values), tensor, write(tmp_path / "f.json", values)):
        got = read_frequencies(source, 4)
        assert (got.dtype, got.device.type, got.requires_grad) == (torch.float32, "cpu", False)
        assert torch.equal(got, expected)
    assert read_frequencies(torch.tensor([0.5, 0.5], dtype=torch.bfloat16)).tolist() == [0.5, 0.5]


def test_a_tensor_is_copied() -> None:
    source = torch.tensor([0.5, 0.5])
    got = read_frequencies(source, 2)
    source.zero_()
    assert got.tolist() == [0.5, 0.5]


def test_padding_of_a_longer_list_is_cut() -> None:
    for pad in (0.0, 0.125):
        values = [0.5, 0.125, 0.25, pad, pad]
        assert read_frequencies(values, 3).tolist() == values[:3]
        assert read_frequencies(torch.tensor(values), 3).tolist() == values[:3]


REFUSED: list[tuple[str, Any]] = [
    ("must hold a list, or an object with 'num_token' and", {"num_token": 3}),
    ("got the keys ['p_baseline_dict']", {COUNTS[0]: {"1": 3}}),
    ("num_token must be an int >= 1, got 3.0", {"num_token": 3.0, COUNTS[0]: {"1": 3}}),
    ("num_token must be an int >= 1, got True", {"num_token": True, COUNTS[0]: {"1": 1}}),
    ("must map token ids to counts, got [3]", {"num_token": 3, COUNTS[1]: [3]}),
    ("p_baseline_dict and token_frequency_dict differ", {"num_token": 3} | {
        COUNTS[0]: {"1": 3}, COUNTS[1]: {"1": 2}}),
    ("token id must be an int >= 0, got '-1'", {"num_token": 3, COUNTS[0]: {"-1": 3}}),
    ("token id must be an int >= 0, got '01'", {"num_token": 3, COUNTS[0]: {"1": 1, "01": 1}}),
    ("token id must be an int >= 0, got 'the'", {"num_token": 3, COUNTS[0]: {"the": 3}}),
    ("count of 1 must be an int >= 0, got 2.0", {"num_token": 3, COUNTS[0]: {"1": 2.0}}),
    ("count of 1 must be an int >= 0, got True", {"num_token": 3, COUNTS[0]: {"1": True}}),
    ("count of 1 must be an int >= 0, got -1", {"num_token": 3, COUNTS[0]: {"0": 2, "1": -1}}),
    ("counts must add up to 1 .. num_token=3, got 4", {"num_token": 3, COUNTS[0]: {"1": 4}}),
    ("counts must add up to 1 .. num_token=3, got 0", {"num_token": 3, COUNTS[0]: {}}),
    ("counts must add up to 1 .. num_token=3, got 0", {"num_token": 3, COUNTS[0]: {"1": 0}}),
    ("ids below the vocabulary size 4, got 4", {"num_token": 3, COUNTS[0]: {"4": 3}}),
    ("sequence of numbers or a floating tensor [V], got 3", 3),
    ("sequence of numbers or a floating tensor [V], got one with '0.5'", [0.5, "0.5"]),
    ("sequence of numbers or a floating tensor [V], got one with True", [0.5, True]),
    ("must be finite and in [0, 1], got nan at id 1", [0.1, float("nan"), 0.1, 0.1]),
    ("must be finite and in [0, 1], got inf at id 0", [float("inf"), 0.1, 0.1, 0.1]),
    ("must be finite", [0.1, 0.1, 0.1, 10**400]),
    ("must be finite and in [0, 1], got -0.5 at id 3", [0.1, 0.1, 0.1, -0.5]),
    ("must be finite and in [0, 1], got 7.0 at id 2", [0.1, 0.1, 7, 0.1]),
    ("must have one above 0, got 4 without", [0.0, 0.0, 0.0, 0.0]),
    ("must cover the vocabulary size 4, got 3", [0.1, 0.1, 0.1]),
    ("must be 4, the vocabulary size, or more by padding, got 5", [0.1, 0.1, 0.1, 0.1, 0.2]),
    ("must be 4, the vocabulary size, or more by padding", [0.1, 0.1, 0.1, 0.1, 0.05, 0.06]),
]  # fmt: skip


@pytest.mark.parametrize(("message", "content"), REFUSED)
def test_a_bad_file_is_refused(message: str, content: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "f.json", content)
    with pytest.raises(ValueError, match="frequencies") as error:
        read_frequencies(path, 4)
    assert message in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("message", "source"),
    [(message, content) for message, content in REFUSED if isinstance(content, list)]
    + [
        ("got torch.int64 [4]", torch.ones(4, dtype=torch.int64)),
        ("got torch.float32 [1, 4]", torch.ones(1, 4)),
        ("got torch.complex64 [4]", torch.ones(4, dtype=torch.complex64)),
        ("got nan at id 2", torch.tensor([0.1, 0.2, float("nan"), 0.1])),
        ("got b'ab'", b"ab"),
        ("got None", None),
        ("got {0.5}", {0.5}),
        ("must cover the vocabulary size 4, got 0", []),
    ],
)
def test_a_bad_value_is_refused(message: str, source: Any) -> None:
    with pytest.raises(ValueError, match=r"^frequencies") as error:
        read_frequencies(source, 4)
    assert message in str(error.value)


@pytest.mark.parametrize("content", ["{", "", "[" * 10**5], ids=["cut short", "empty", "too deep"])
def test_a_file_that_is_not_json_is_refused(content: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"frequencies .*f\.json' must be a JSON file"):
        read_frequencies(write(tmp_path / "f.json", content))


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "none", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(ValueError, match=f"frequencies .*readable file: {reason}"):
            read_frequencies(path)


def test_other_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="vocab_size must be an int >= 1, got 0"):
        read_frequencies([1.0], 0)
    with pytest.raises(ValueError, match="must have one above 0"):
        read_frequencies([])
    path = write(tmp_path / "f.json", {"num_token": 3, COUNTS[0]: {str(10**15): 3}})
    with pytest.raises(ValueError, match="ids below the vocabulary size 16777216"):
        read_frequencies(path)


def test_a_real_vocabulary(tmp_path: Path) -> None:
    size = 126_464
    counts = {str(token): token % 1000 for token in range(size)}
    path = write(tmp_path / "f.json", {"num_token": 10**9, COUNTS[0]: counts})
    got = read_frequencies(path, size)
    assert torch.equal(got, (torch.arange(size).double() % 1000 / 1e9).float())
