"""Many answers in shared forwards have the likelihood that each has alone."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import dlm
from dlm.batch import denoise
from dlm.greedy import Question, are_greedy
from dlm.models.model import Model
from dlm.questions import FORWARDS
from dlm.scoring import Reader, ScoredRows, Scores

Toy = Callable[..., Model]
Pair = tuple[list[int], list[int]]
WAYS: list[dict[str, Any]] = [
    {"samples": 12},
    {"samples": 7, "batch_size": 3, "seed": 5, "cfg_scale": 0.5},
    {"estimator": "chain", "samples": 3, "batch_size": 4},
    {"estimator": "chain", "order": "left_to_right", "batch_size": 2},
    {"estimator": "chain", "order": "confidence", "cfg_scale": 1.0},
]
FAMILIES = (
    *("llada", "dream", "llada2", "sdar", "nemotron-labs-diffusion", "mdlm", "encoder"),
    *("llada 4", "dream 3"),
)
"""Attention both ways, shifted, in blocks, causal before them, in blocks of 4 and 3 tokens behind
the prompt; rows that something closes."""


def answers_of(model: Model, prompts: Sequence[list[int]], lengths: Sequence[int]) -> list[Pair]:
    """Given answers to each prompt, and those that greedy decoding makes of it."""
    pairs = []
    for number, prompt in enumerate(prompts):
        given = [[5 + (7 * number + 3 * n + i) % 3 for i in range(n)] for n in lengths]
        made = [greedy_tokens(model, prompt, n, 0.0) for n in sorted({*lengths})]
        pairs += [(prompt, answer) for answer in (*given, *made)]
    return [pair for pair in pairs if not set(pair[1]) & set(model.spec.banned)]


def greedy_tokens(model: Model, prompt: list[int], length: int, scale: float) -> list[int]:
    options: dict[str, Any] = {"gen_length": length, "block_length": None, "cfg_scale": scale}
    out = dlm.generate(model, [prompt], decoder="low_confidence", stop_at_eos=False, **options)
    return out.tokens[0]


def alone(model: Model, pairs: Sequence[Pair], options: dict[str, Any]) -> list[float]:
    return [dlm.log_likelihood(model, *pair, **options) for pair in pairs]


def shared(
    model: Model, pairs: Sequence[Pair], rows: int, **options: Any
) -> tuple[list[float], list[bool | None]]:
    found = sorted(dlm.log_likelihoods(model, pairs, rows=rows, **options), key=lambda x: x.pair)
    assert [one.pair for one in found] == list(range(len(pairs)))
    return [one.log_likelihood for one in found], [one.greedy for one in found]


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Rows and columns of every forward that scores."""
    seen: list[tuple[int, ...]] = []
    plain = Reader.__call__

    def counted(self: Reader, rows: ScoredRows, *places: Any) -> Scores:
        seen.append(tuple(rows.tokens.shape))
        return plain(self, rows, *places)

    monkeypatch.setattr(Reader, "__call__", counted)
    return seen


@pytest.fixture(scope="module")
def toy_pairs(toy: Toy) -> tuple[Model, list[Pair]]:
    """A model whose logits of a row are the same bits in any batch."""
    model = toy(1)
    prompts = [[0, 1, 2], [4], [3, 2, 1, 0, 4, 4, 1], [2, 2]]
    pairs = answers_of(model, prompts, (1, 1, 2, 3, 5))
    return model, [*pairs, pairs[3], pairs[0]]


@pytest.mark.parametrize("rows", [1, 5, 64])
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_values_are_those_of_pairs_alone(
    toy_pairs: tuple[Model, list[Pair]], way: dict[str, Any], rows: int
) -> None:
    """To the last bit, where the network's logits are."""
    model, pairs = toy_pairs
    values, flags = shared(model, pairs, rows, **way)
    assert values == alone(model, pairs, way)
    assert flags == [None] * len(pairs)


@pytest.mark.parametrize("scale", [0.0, 0.5])
@pytest.mark.parametrize("rows", [1, 4, 64])
def test_greedy_is_what_decoding_writes(
    toy_pairs: tuple[Model, list[Pair]], rows: int, scale: float
) -> None:
    model, pairs = toy_pairs
    pairs = [*pairs, *((p, greedy_tokens(model, p, 4, scale)) for p, _ in pairs[::9])]
    _, flags = shared(model, pairs, rows, greedy=True, samples=2, cfg_scale=scale)
    expected = [answer == greedy_tokens(model, p, len(answer), scale) for p, answer in pairs]
    assert flags == expected
    assert {(len(answer) > 1, flag) for (_, answer), flag in zip(pairs, flags, strict=True)} == {
        (long, flag) for long in (False, True) for flag in (False, True)
    }


def test_blocks_behind_a_prompt_see_it_and_those_before(golden: Model) -> None:
    """Blocks of one token are scored left to right, by a prompt that sees all of itself."""
    model = Model(golden.network, None, replace(golden.spec, block_size=1, anchored=True))
    prompt, answer, total = [5, 6, 7, 8], [9, 10, 11], 0.0
    sees = torch.ones(7, 7).tril().bool()
    sees[:4, :4] = True
    for count, token in enumerate(answer):
        tokens = torch.tensor([[*prompt, *answer[:count], model.spec.mask_id]])
        length = tokens.shape[1]
        at = torch.arange(length)[None]
        hidden = model.hidden(tokens, at, None, attend=sees[None, :length, :length])
        logits = model.logits(hidden)[0, -1]
        logits[list(model.spec.banned)] = -torch.inf
        total += float(logits.log_softmax(-1)[token])
    found = dlm.log_likelihood(model, prompt, answer, samples=1)
    assert found == pytest.approx(total, abs=1e-4)
    both_ways = dlm.log_likelihood(golden, prompt, answer, estimator="chain", order="left_to_right")
    assert abs(found - both_ways) > 0.01


@pytest.mark.one_in(4)
@pytest.mark.parametrize("scale", [0.0, 0.5])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_kind_of_attention(written: Callable[[str], Path], name: str, scale: float) -> None:
    """Padded rows, and answers of several blocks, on small checkpoints in float32."""
    family, _, size = name.partition(" ")
    model = dlm.load(written(family), dtype="float32", block_size=int(size) if size else None)
    prompts = [[5, 6, 7, 8, 9, 10], [11], [12, 13, 14]]
    pairs = answers_of(model, prompts, (1, 2, 11))
    way: dict[str, Any] = {"samples": 6, "cfg_scale": scale}
    values, flags = shared(model, pairs, 7, greedy=True, **way)
    assert values == pytest.approx(alone(model, pairs, way), rel=1e-5, abs=1e-4)
    assert flags == [a == greedy_tokens(model, p, len(a), scale) for p, a in pairs]
    assert {True, False} == {*flags}


@pytest.mark.parametrize("way", [{"samples": 128}, WAYS[2], WAYS[3], WAYS[4]], ids=str)
def test_answers_of_one_token_take_one_row_a_prompt(
    golden: Model, forwards: list[tuple[int, ...]], way: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("dlm.job.denoise", None)  # the flag is read from the same logits
    pairs = [([9, prompt], [token]) for prompt in range(20) for token in (5, 6, 7, 8)]
    values, flags = shared(golden, pairs, 16, greedy=True, **way)
    assert forwards == [(16, 3), (4, 3)]
    logits = golden.raw_logits(torch.tensor([[9, 4, golden.spec.mask_id]]))[0, 2]
    logits[list(golden.spec.banned)] = -torch.inf
    if not way.get("cfg_scale"):
        expected = logits.log_softmax(-1)[5:9].tolist()
        assert values[16:20] == pytest.approx(expected, abs=1e-5)
        best = int(logits.argmax())
        assert shared(golden, [([9, 4], [best])], 1, greedy=True)[1] == [True]
        assert flags[16:20] == [token == best for token in (5, 6, 7, 8)]


def test_equal_rows_are_computed_once(golden: Model, forwards: list[tuple[int, ...]]) -> None:
    """Of two tokens each may be masked, or both: and that row is all answers'."""
    pairs = [([9, 8], [5, token]) for token in (5, 6, 7, 8)] * 2
    values, _ = shared(golden, pairs, 64, samples=128)
    # The first token masked, 4 rows; the second, after the same one, and both: 1 row each.
    assert forwards == [(6, 4)]
    assert values[:4] == values[4:]
    assert values == pytest.approx(alone(golden, pairs, {}), abs=1e-4)


def test_rows_of_like_lengths_go_together(golden: Model, forwards: list[tuple[int, ...]]) -> None:
    pairs = [([7] * length, [5]) for length in (3, 30, 4, 29, 3, 30, 5, 28)]
    pairs = [([number, *prompt], answer) for number, (prompt, answer) in enumerate(pairs)]
    shared(golden, pairs, 4)
    assert forwards == [(4, 32), (4, 7)]


def test_forwards_have_as_many_rows_as_there_may_be(
    golden: Model, forwards: list[tuple[int, ...]]
) -> None:
    pairs = [([n], [5, 6, 7, 8, 9, 10, 11, 12 + n]) for n in range(12)]
    shared(golden, pairs, 20, samples=24)
    assert max(forwards)[0] == 20
    spare = [rows for rows, _ in forwards if rows < 20]
    assert len(spare) <= -(-len(forwards) // FORWARDS) + 1


def test_pairs_are_handed_over_as_they_are_done(
    golden: Model, forwards: list[tuple[int, ...]]
) -> None:
    found = dlm.log_likelihoods(golden, [([n], [5]) for n in range(40)], rows=4)
    assert forwards == []
    next(found)
    assert forwards == [(4, 2)]


def test_a_row_is_given_up_where_it_differs(golden: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []

    def counted(*args: Any) -> Iterator[Any]:
        for step in denoise(*args):
            steps.append(sum(step.live))
            yield step

    right = tuple(greedy_tokens(golden, [9], 6, 0.0))
    monkeypatch.setattr("dlm.job.denoise", counted)
    wrong = (*right[:5], (right[5] + 1) % 500)
    other = Question((8,), 6, {(5,) * 6: [], (6,) * 6: []})
    found = are_greedy(golden, [other, Question((9,), 6, {wrong: [], right: []})], 0.0)
    assert found == [{(5,) * 6: False, (6,) * 6: False}, {wrong: False, right: True}]
    assert steps == [2, 1, 1, 1, 1, 1]
    steps.clear()
    are_greedy(golden, [other, other], 0.0)
    assert steps == [2]


def test_what_does_not_fit_memory_is_halved_and_stays_so(
    golden: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = [([n, 9], [5, 6, 7 + n % 3, 8]) for n in range(6)]
    expected = shared(golden, pairs, 16, greedy=True, samples=5)
    asked: list[int] = []
    plain, most = Reader.__call__, 3

    def short(self: Reader, rows: ScoredRows, *places: Any) -> Scores:
        asked.append(len(rows.tokens))
        if asked[-1] > most:
            raise torch.OutOfMemoryError("too much")
        return plain(self, rows, *places)

    monkeypatch.setattr(Reader, "__call__", short)
    values, flags = shared(golden, pairs, 16, greedy=True, samples=5)
    assert values == pytest.approx(expected[0], abs=1e-4)
    assert flags == expected[1]
    assert asked[:3] == [16, 8, 4]
    assert max(asked[3:]) == 2
    most = 0
    with pytest.raises(torch.OutOfMemoryError):
        shared(golden, pairs, 16)


def test_memory_that_is_short_while_decoding(
    golden: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = [([n, 9], [5, 6]) for n in range(6)]
    expected = shared(golden, pairs, 8, greedy=True)
    sizes: list[int] = []

    def short(model: Model, questions: Sequence[Question], scale: float) -> Any:
        sizes.append(len(questions))
        if len(questions) > 2:
            raise torch.OutOfMemoryError("too much")
        return are_greedy(model, questions, scale)

    monkeypatch.setattr("dlm.questions.are_greedy", short)
    values, flags = shared(golden, pairs, 8, greedy=True)
    assert sizes == [6, 3, 1, 1, 1, 1, 1, 1]
    assert flags == expected[1]
    assert values == pytest.approx(expected[0], abs=1e-4)


def test_nan_is_refused(toy: Toy) -> None:
    broken = toy(torch.full((97, 8), torch.nan))
    with pytest.raises(ValueError, match="NaN"):
        list(dlm.log_likelihoods(broken, [([0], [1])]))


@pytest.mark.parametrize(
    ("pair", "options", "message"),
    [
        (([0], [1]), {"rows": 0}, "rows must be an int >= 1, got 0"),
        (([0], [1]), {"greedy": "no"}, "greedy must be True or False, got 'no'"),
        (([0], [1]), {"samples": 0}, "samples must be an int >= 1, got 0"),
        (([0], [1]), {"order": "confidence"}, "order is for estimator='chain'"),
        (([0], [1]), {"cfg_scale": -2}, "cfg_scale must be a finite number"),
        (([0], [1]), {"grady": True}, "Did you mean 'greedy'"),
        (([], [1]), {}, "non-empty"),
        (([0], []), {}, "at least one token"),
        (([0], [7]), {}, "mask or unused ids"),
        (([0] * 500, [1] * 13), {}, "512 positions, got 513"),
    ],
)
def test_bad_input_is_refused_when_called(
    toy: Toy, pair: Pair, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        dlm.log_likelihoods(toy(1), [([0], [1]), pair], **options)
