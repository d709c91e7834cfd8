"""Draws and statistics under a constraint, against all texts one by one.

Shapes: B rows, W window, S states, C classes, V vocabulary.
"""

import math
import runpy
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st
from scipy import stats  # type: ignore[import-untyped]

from dlm.constraints.automaton import Arrows, Automaton, everything
from dlm.kernels import Bonus, NoiseKey, token_statistics
from dlm.models.model import Model

Toy = Callable[..., Model]

CASES = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "chain_cases.py")))
WORDS, MASK, ASKED = CASES.WORDS, CASES.MASK, CASES.ASKED
Scene, scene, language = CASES.Scene, CASES.scene, CASES.language


@hypothesis(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_the_likeliest_text_is_taken(toy: Toy, seed: int) -> None:
    case = scene(seed, toy())
    found = tuple(case.ask(ASKED, toy()).sampled.tolist())
    weights = dict(case.weights(1.0))
    assert weights[found] == pytest.approx(max(weights.values()), abs=1e-5)


@hypothesis(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_statistics_are_of_all_texts(toy: Toy, seed: int) -> None:
    """p(token), and of the whole distribution of a position its entropy and its margin."""
    case = scene(seed, toy())
    told, law = case.ask(ASKED, toy()), case.law()
    window = case.tokens[case.first : case.first + case.width]
    for place, token in enumerate(window):
        if token != MASK:
            free = case.logits[place].clone()
            free[MASK] = -torch.inf
            assert told.sampled[place] == token
            assert told.token_probability[place] == pytest.approx(
                float(free.softmax(-1)[token]), abs=1e-5
            )
            continue
        each: Counter[int] = Counter()
        for text, probability in law.items():
            each[text[place]] += probability
        values = sorted(each.values(), reverse=True)
        sampled = int(told.sampled[place])
        assert told.confidence[place] == pytest.approx(each[sampled], abs=1e-5)
        assert told.token_probability[place] == 0
        entropy = -sum(p * math.log(p) for p in values if p)
        assert told.entropy[place] == pytest.approx(entropy, abs=1e-4)
        second = values[1] if len(values) > 1 else 0.0
        assert told.margin[place] == pytest.approx(values[0] - second, abs=1e-5)


@pytest.mark.parametrize("seed", [1, 5, 8])
def test_draws_follow_the_law_of_all_texts(toy: Toy, seed: int) -> None:
    """At a temperature, jointly: not position by position."""
    case, count, temperature = scene(seed, toy(), width=3, blocks=2), 6000, 0.7
    case = replace(
        case, tokens=[*case.tokens[: case.first], *[MASK] * (len(case.tokens) - case.first)]
    )
    told = case.ask(replace(ASKED, draws=True), toy(), count, temperature)
    found = Counter(map(tuple, told.sampled.view(count, 3).tolist()))
    law = case.law(temperature)
    assert set(found) <= set(law)
    common = [text for text, p in law.items() if p * count >= 5]
    assert len(common) > 1
    seen = [found[text] for text in common]
    expected = [law[text] * count for text in common]
    rest = [count - sum(seen)], [count - sum(expected)]
    if rest[1][0] >= 5:
        seen, expected = seen + rest[0], expected + rest[1]
    expected = [value * sum(seen) / sum(expected) for value in expected]
    assert stats.chisquare(seen, expected).pvalue > 1e-3


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("draws", [False, True])
def test_other_languages_of_a_batch_change_no_bit(toy: Toy, seed: int, draws: bool) -> None:
    """Larger ones, too, where logits are so far apart that anything added to them would tell."""
    model = toy()
    case = scene(seed, model)
    case = replace(case, logits=1000 * case.logits + torch.arange(8) * 1e-4)
    asked = replace(ASKED, draws=draws)
    others = [language(seed + step, model.spec, states=2 + 3 * step) for step in (1, 2)]
    alone = case.ask(asked, model, 4, 0.7 * draws)
    among = case.ask(asked, model, 4, 0.7 * draws, beside=others)
    for name in ("sampled", *ASKED.wanted):
        assert torch.equal(getattr(alone, name), getattr(among, name)), name


@pytest.mark.parametrize("draws", [False, True])
def test_classes_that_a_language_has_not_weigh_nothing(toy: Toy, draws: bool) -> None:
    """Here its begin is worth far more than what can be reached, and close calls are below that."""
    model = toy()
    source, label, target = torch.tensor([[0, 0, 0], [0, 1, 1], [1, 2, 2], [1, 3, 3]]).T
    ends = torch.tensor([True, False, True, True])
    own = Automaton.of(Arrows(source, label, target), ends, 0, model.spec)
    other = next(
        x for x in (language(n, model.spec) for n in range(99)) if x.following.shape[1] > 6
    )
    assert own.following.shape[1] == 6
    logits = torch.zeros(4, 8)
    logits[1:, 0], logits[0, 1] = 200.0, 1000.0
    logits[1, 2], logits[1, 3] = 1.0, 1.000004
    asked = replace(ASKED, draws=draws, filters={"top_k": 1} if draws else {})
    case = Scene(own, [MASK] * 4, 0, 4, logits, 0)
    for beside in ([], [other]):
        told = case.ask(asked, model, 1, float(draws), beside=beside)
        assert told.sampled.tolist()[:2] == [1, 3]


@pytest.mark.parametrize("filters", [{"top_k": 2}, {"min_p": 1.0}, {"top_p": 0.3}], ids=str)
def test_a_free_row_keeps_its_ties(toy: Toy, filters: dict[str, Any]) -> None:
    """Also those of logits that are 0, which any rounding would break."""
    model = toy()
    draw = torch.Generator().manual_seed(1)
    for _ in range(20):
        logits = torch.randint(-1, 2, (4, 8), generator=draw).float().clamp(max=0)
        case = Scene(everything(model.spec), [MASK] * 4, 0, 4, logits, 0)
        told = case.ask(replace(ASKED, law="sampling", filters=filters), model)
        plain = token_statistics(
            logits,
            ("confidence", "entropy", "margin"),
            law="sampling",
            suppressed=torch.arange(8) == MASK,
            **filters,
        )
        for name in ("sampled", "confidence", "entropy", "margin"):
            assert torch.equal(getattr(told, name), getattr(plain, name)), name


@pytest.mark.parametrize("law", ["model", "sampling"])
@pytest.mark.parametrize("draws", [False, True])
@pytest.mark.parametrize("filters", [{}, {"top_k": 3, "top_p": 0.8, "min_p": 0.2}], ids=str)
def test_a_language_of_everything_changes_nothing(
    toy: Toy, law: Literal["model", "sampling"], draws: bool, filters: dict[str, Any]
) -> None:
    """To the bit, where tokens are taken, or drawn from all or from what filters leave."""
    model = toy()
    words = torch.arange(len(WORDS))
    every = Automaton.of(
        Arrows(torch.zeros_like(words), words, torch.zeros_like(words)),
        torch.tensor([True]),
        0,
        model.spec,
    )
    logits = 2 * torch.randn(4, 8, generator=torch.Generator().manual_seed(3))
    case = Scene(every, [MASK] * 4, 0, 4, logits, 0)
    asked = replace(ASKED, law=law, draws=draws, filters=filters)
    told = case.ask(asked, model, 50, 0.9 if draws else 0.0)
    position = torch.arange(4).repeat(50)
    key = NoiseKey(
        torch.full((200,), 5), torch.arange(50).repeat_interleave(4), position, position * 0
    )
    options: dict[str, Any] = {"temperature": torch.full((200,), 0.9), "key": key}
    plain = token_statistics(
        logits.repeat(50, 1),
        ("confidence", "entropy", "margin"),
        law=law,
        **asked.filters,
        suppressed=torch.arange(8) == MASK,
        **options if draws else {},
    )
    for name in ("sampled", "confidence", "entropy", "margin"):
        assert torch.equal(getattr(told, name), getattr(plain, name)), name


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("prompt", "beyond"), [(2, 0), (0, 2), (1, 1)])
def test_columns_outside_of_the_row_say_nothing(
    toy: Toy, seed: int, prompt: int, beyond: int
) -> None:
    """The prompt in front of it, where blocks lie on a grid, and what is behind its end."""
    model = toy()
    automaton = next(
        x for x in (language(seed + k, model.spec) for k in range(99)) if x.left[0] < 3
    )
    logits = 2 * torch.randn(5, 8, generator=torch.Generator().manual_seed(seed))
    length = 5 - prompt - beyond
    case = Scene(automaton, [MASK] * length, 0, 5, logits, 0, prompt, beyond)
    told, law = case.ask(ASKED, model), case.law()
    found = tuple(told.sampled[prompt : prompt + length].tolist())
    assert law[found] == pytest.approx(max(law.values()), abs=1e-6)
    for place, token in enumerate(found):
        each = sum(p for text, p in law.items() if text[place] == token)
        assert told.confidence[prompt + place] == pytest.approx(each, abs=1e-5)
    drawn = case.ask(replace(ASKED, draws=True), model, 200, 1.0).sampled.view(200, 5)
    assert {tuple(row) for row in drawn[:, prompt : prompt + length].tolist()} <= set(law)


def test_tokens_that_are_never_sampled_make_ends_farther(toy: Toy) -> None:
    """What the window leaves must still be possible without them."""
    model = toy()
    source, label, target = (torch.tensor(x) for x in ([0, 0, 1, 2], [2, 3, 0, 4], [1, 2, 3, 3]))
    accepting = torch.tensor([False, False, False, True])
    two = Automaton.of(Arrows(source, label, target), accepting, 0, model.spec)
    logits = torch.zeros(1, 8)
    logits[0, 2] = 5.0
    case = Scene(two, [MASK] * 2, 0, 1, logits, 1)
    assert case.ask(ASKED, model).sampled.tolist() == [2]
    assert replace(case, never=(0,)).ask(ASKED, model).sampled.tolist() == [3]


@pytest.mark.parametrize("filters", [{}, {"top_k": 8}], ids=str)
def test_ways_on_count_at_every_temperature(toy: Toy, filters: dict[str, int]) -> None:
    """Of two words in front of one way on, and of five; also where tokens are drawn one by one."""
    model, count = toy(), 8000
    source, label = torch.tensor([0, 0, 1, *[2] * 5]), torch.tensor([0, 1, 0, *WORDS])
    fork = Automaton.of(
        Arrows(source, label, torch.tensor([1, 2, *[3] * 6])),
        torch.tensor([False, False, False, True]),
        0,
        model.spec,
    )
    logits = torch.randn(2, 8, generator=torch.Generator().manual_seed(1))
    case = Scene(fork, [MASK] * 2, 0, 2, logits, 0)
    told = case.ask(replace(ASKED, draws=True, filters=filters), model, count, 4.0)
    law = case.law(4.0)
    found = Counter(map(tuple, told.sampled.view(count, 2).tolist()))
    assert set(found) == set(law)
    expected = [law[text] * count for text in found]
    assert stats.chisquare([*found.values()], expected).pvalue > 1e-3


@pytest.mark.one_in(4)
@pytest.mark.parametrize("law", ["model", "sampling"])
@pytest.mark.parametrize("scale_statistics", [True, False])
@pytest.mark.parametrize("filters", [{}, {"top_k": 7}], ids=str)
@pytest.mark.parametrize("seed", [1, 5, 8])
def test_what_decoders_add_counts(
    toy: Toy, law: str, scale_statistics: bool, filters: dict[str, int], seed: int
) -> None:
    """Scale and bonus, by the law that scores are of; also where filters cut."""
    model, count, temperature, scale = toy(), 3000, 1.9, 0.7
    case = scene(seed, model, width=3)
    blanks = [MASK] * (len(case.tokens) - case.first)
    case = replace(case, tokens=[*case.tokens[: case.first], *blanks])
    bonus = Bonus(torch.tensor([[0, 6]] * 3 * count), torch.tensor([[1.5, -0.5]] * 3 * count))
    raised = case.logits.clone()
    raised[:, 0] += 1.5
    raised[:, 6] -= 0.5
    asked = replace(
        ASKED,
        draws=True,
        law=law,
        scale=torch.full((count,), scale),
        scale_statistics=scale_statistics,
        bonus=bonus,
        filters=filters,
    )
    told = case.ask(asked, model, count, temperature)
    truth = replace(case, logits=raised)
    drawn = truth.law(temperature / scale)
    found = Counter(map(tuple, told.sampled.view(count, 3).tolist()))
    assert set(found) <= set(drawn)
    apart = sum(abs(found[text] / count - p) for text, p in drawn.items()) / 2
    usual = sum(math.sqrt(2 * p * (1 - p) / count / math.pi) for p in drawn.values()) / 2
    assert apart < 2.5 * usual
    scored = (temperature if law == "sampling" else 1.0) / (scale if scale_statistics else 1.0)
    told_by = truth.law(scored)
    for place in range(3):
        each: Counter[int] = Counter()
        for text, p in told_by.items():
            each[text[place]] += p
        for row in range(5):
            sampled = int(told.sampled.view(count, 3)[row, place])
            assert told.confidence.view(count, 3)[row, place] == pytest.approx(
                each[sampled], abs=1e-4
            )


def test_a_text_that_the_model_thinks_impossible_is_weighed_all_the_same(toy: Toy) -> None:
    """Logarithms: of two ways whose products are far below the smallest number the better one."""
    model = toy()
    source = torch.tensor([0, 1, 2, 0, 3, 4])
    label = torch.tensor([0, 0, 0, 1, 1, 1])
    target = torch.tensor([1, 2, 5, 3, 4, 5])
    accepting = torch.tensor([False] * 5 + [True])
    two = Automaton.of(Arrows(source, label, target), accepting, 0, model.spec)
    logits = torch.zeros(3, 8)
    logits[:, 0], logits[:, 1] = -1e4, -1.1e4
    told = Scene(two, [MASK] * 3, 0, 3, logits, 0).ask(ASKED, model)
    assert told.sampled.tolist() == [0, 0, 0]
    assert told.confidence.tolist() == [1, 1, 1]
    drawn = Scene(two, [MASK] * 3, 0, 3, logits, 0).ask(replace(ASKED, draws=True), model, 5, 1.0)
    assert drawn.sampled.tolist() == [0] * 15
