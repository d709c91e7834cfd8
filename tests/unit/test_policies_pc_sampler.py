"""PC-Sampler (policies.md section 3): scores, weights, origins and sources of frequencies."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dlm
from dlm.background import background
from dlm.decoders import PCSampler
from dlm.decoders.pc_sampler import Weighted
from dlm.models.model import Model
from dlm.types import Facts, StepView

View = Callable[..., StepView]
Bind = Callable[..., Facts]
Picked = Callable[..., list[int]]

rule = settings(max_examples=60, deadline=None)
chances = st.floats(2**-7, 1.0, width=32)


@st.composite
def positions(draw: st.DrawFn) -> dict[str, Any]:
    width = draw(st.integers(1, 12))

    def row(values: st.SearchStrategy[Any]) -> Any:
        return draw(st.lists(values, min_size=width, max_size=width))

    return {
        "confidence": row(chances),
        "sampled": row(st.integers(0, 6)),
        "masked": row(st.booleans()),
        "quota": draw(st.integers(1, 4)),
        "block_start": draw(st.integers(3, 9)),
    }


frequencies = st.lists(st.floats(2**-20, 1.0, width=32), min_size=8, max_size=8)


def score(case: dict[str, Any], column: int, table: list[float], **options: Any) -> float:
    """exp(-lambda j) min(-c ln(f + 1e-9), alpha), as plainly as it can be written."""
    j = column + case["block_start"] - options["origin"]
    rarity = -math.log(table[case["sampled"][column]] + 1e-9)
    content = float(min(case["confidence"][column] * rarity, options["alpha"]))
    return math.exp(-options["lambda_"] * j) * content


def check_best(picked: list[int], scores: dict[int, float], quota: int) -> None:
    """The picked are as good as the best, up to float32."""
    assert len(picked) == min(quota, len(scores))
    best = sorted(scores.values(), reverse=True)[: len(picked)]
    for found, wanted in zip(sorted((scores[i] for i in picked), reverse=True), best, strict=True):
        assert found == pytest.approx(wanted, rel=1e-5, abs=1e-6)


@rule
@given(
    positions(), frequencies, st.sampled_from([0.0, 0.25, 1.0]), st.sampled_from([0.5, 2.0, 10.0]),
    st.sampled_from(["block", "generation"]),
)  # fmt: skip
def test_commits_the_best_by_the_formula(
    view_of: View, facts: Bind, picked: Picked, case: dict[str, Any], table: list[float],
    lambda_: float, alpha: float, origin: str,
) -> None:  # fmt: skip
    start = {"block": case["block_start"], "generation": 2}[origin]
    decoder = PCSampler(lambda_, alpha, table, position_origin=origin).bind(facts())
    _, decision = decoder.step(None, view_of(**case, row_start=2))
    scores = {
        i: score(case, i, table, lambda_=lambda_, alpha=alpha, origin=start)
        for i, open_ in enumerate(case["masked"]) if open_
    }  # fmt: skip
    check_best(picked(decision.commit), scores, case["quota"])


@rule
@given(positions(), frequencies)
def test_a_large_lambda_is_left_to_right(
    view_of: View, facts: Bind, picked: Picked, case: dict[str, Any], table: list[float]
) -> None:
    """T3.1, with any content score above 0."""
    table = [min(value, 0.5) for value in table]
    _, decision = PCSampler(50.0, frequencies=table).bind(facts()).step(None, view_of(**case))
    open_ = [i for i, masked in enumerate(case["masked"]) if masked]
    assert picked(decision.commit) == open_[: case["quota"]]


@rule
@given(positions(), st.floats(0.01, 0.9))
def test_without_weights_the_order_is_that_of_confidence(
    view_of: View, facts: Bind, picked: Picked, case: dict[str, Any], value: float
) -> None:
    """T3.2: constant f and lambda 0 scale confidence by one positive number."""
    decoder = PCSampler(0.0, 100.0, [value] * 8).bind(facts())
    _, decision = decoder.step(None, view_of(**case))
    scores = {i: case["confidence"][i] for i, open_ in enumerate(case["masked"]) if open_}
    check_best(picked(decision.commit), scores, case["quota"])


def counts(path: Path, scale: int, key: str = "p_baseline_dict") -> str:
    table = {str(token): scale * count for token, count in {0: 50, 1: 1, 3: 9}.items()}
    path.write_text(json.dumps({"num_token": scale * 100, key: table}))
    return str(path)


def test_doubled_counts_are_the_same_frequencies(tmp_path: Path, facts: Bind) -> None:
    """T3.3: of every token seen; one that is not seen comes up once in the corpus."""
    tables = [
        PCSampler(frequencies=counts(tmp_path / f"{scale}.json", scale)).bind(facts()).table
        for scale in (1, 2)
    ]
    assert tables[0] is not None
    assert tables[1] is not None
    assert tables[0].tolist() == pytest.approx([0.5, 0.01, 0.01, 0.09, *[0.01] * 4])
    assert torch.equal(tables[0][[0, 1, 3]], tables[1][[0, 1, 3]])
    assert tables[1][2].item() == pytest.approx(1 / 200)


@rule
@given(st.lists(chances, min_size=2, max_size=9), st.floats(1e-8, 0.9), st.floats(0.1, 10.0))
def test_scores_are_clamped_and_monotone(
    view_of: View, facts: Bind, confidence: list[float], value: float, alpha: float
) -> None:
    """T3.4."""
    decoder = PCSampler(0.0, alpha, [value] * 8).bind(facts())
    scores = decoder.exponential(view_of(confidence=sorted(confidence)))[0].tolist()
    assert max(scores) <= torch.tensor(alpha).item()
    assert min(scores) >= 0
    assert scores == sorted(scores)


def test_the_rarer_of_two_equally_likely_tokens_goes_first(
    view_of: View, facts: Bind, picked: Picked
) -> None:
    """T3.5."""
    decoder = PCSampler(0.0, frequencies=[0.4, 0.001, 0.1, *[0.0] * 5]).bind(facts())
    view = view_of(confidence=[0.5, 0.5, 0.5], sampled=[0, 1, 2])
    assert picked(decoder.step(None, view)[1].commit) == [1]


def test_position_decides_among_clamped_scores(view_of: View, facts: Bind, picked: Picked) -> None:
    """The clamp comes before the position weight: rarer than e^-10 is no better than that."""
    decoder = PCSampler(0.25, 10.0, [1e-5, 1e-8, *[0.1] * 6]).bind(facts())
    view = view_of(confidence=[1.0, 1.0], sampled=[0, 1])
    assert picked(decoder.step(None, view)[1].commit) == [0]


@pytest.mark.parametrize("far", [100, 400, 900])
def test_far_positions_still_rank_by_content(
    view_of: View, facts: Bind, picked: Picked, far: int
) -> None:
    """exp(-lambda j) of a block of 1024 (MATH500 in the paper) is tiny, but it is not 0."""
    decoder = PCSampler(0.25, frequencies=[0.9, 1e-6, *[0.0] * 6]).bind(facts())
    masked = [column in (far, far + 1) for column in range(1024)]
    sampled = [int(column == far + 1) for column in range(1024)]
    view = view_of(confidence=[0.5] * 1024, masked=masked, sampled=sampled)
    wanted = {  # 0.05 against 6.9 / e^0.25
        far: 0.5 * -math.log(0.9), far + 1: math.exp(-0.25) * 0.5 * -math.log(1e-6)
    }  # fmt: skip
    assert wanted[far + 1] > wanted[far]
    assert picked(decoder.step(None, view)[1].commit) == [far + 1]


@rule
@given(positions(), st.floats(0.0, 1.0), frequencies, st.sampled_from([0.5, 10.0]), st.data())
def test_linear_weights(
    view_of: View, facts: Bind, picked: Picked, case: dict[str, Any], lambda_: float,
    table: list[float], alpha: float, data: st.DataObject,
) -> None:  # fmt: skip
    """(1 - lambda) minmax(s) + lambda (L - j) / L, minmax over the block, committed or not."""
    length = len(case["masked"])
    tokens = data.draw(st.lists(st.integers(0, 6), min_size=length, max_size=length))
    decoder = PCSampler(lambda_, alpha, table, "linear").bind(facts())
    _, decision = decoder.step(None, view_of(**case, tokens=tokens))
    held = [case["sampled"][i] if open_ else tokens[i] for i, open_ in enumerate(case["masked"])]
    content = [score(case | {"sampled": held}, i, table, lambda_=0, alpha=alpha, origin=0)
               for i in range(length)]  # fmt: skip
    least, most = min(content), max(content)
    scores = {
        i: (1 - lambda_) * (content[i] - least) / max(most - least, 1e-9)
        + lambda_ * (length - i) / length
        for i, open_ in enumerate(case["masked"]) if open_
    }  # fmt: skip
    check_best(picked(decision.commit), scores, case["quota"])


@pytest.mark.parametrize(("committed", "first"), [(2, 0), (0, 1)])
def test_what_is_committed_sets_the_range_of_linear_weights(
    view_of: View, facts: Bind, picked: Picked, committed: int, first: int
) -> None:
    """A rare token in the block makes the others alike, and the earlier one goes first."""
    table = [0.5, 0.5, 1e-8, *[0.1] * 5]
    decoder = PCSampler(0.3, 10.0, table, "linear").bind(facts())
    view = view_of(
        confidence=[0.5, 0.6, 0.6], sampled=[0, 0, 0], tokens=[7, 7, committed],
        masked=[True, True, False],
    )  # fmt: skip
    assert picked(decoder.step(None, view)[1].commit) == [first]


def test_linear_weights_measure_what_is_committed(
    toy: Callable[..., Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The range of scores is that of the block, so that an early and telling token narrows it."""
    table = [0.5, 0.25, 1e-4, 0.1, 0.1, 0.05, 0.0, 0.0]
    model = toy(3)
    decoder = PCSampler(frequencies=table, weight="linear")
    bound = Weighted.step
    seen: list[StepView] = []

    def watched(self: Weighted, state: None, view: StepView) -> Any:
        seen.append(view)
        return bound(self, state, view)

    monkeypatch.setattr(Weighted, "step", watched)
    dlm.generate(model, [[1]], decoder=decoder, gen_length=6, stop_at_eos=False)
    assert len(seen) == 6
    assert all(bool((view.want("confidence") > 0).all()) for view in seen)


def test_position_temperature_sees_the_weight_as_it_stands(view_of: View, facts: Bind) -> None:
    """s + T g with s = e^{-lambda j} content: noise counts the same as the block fills."""
    decoder = PCSampler(1.0, 10.0, [0.5] * 8, position_origin="generation").bind(facts())
    confidence = torch.tensor([[0.5, 1.0, 0.75]])
    view = view_of(
        masked=[[False, True, True]], confidence=confidence, sampled=[[1, 1, 1]],
        position_noise=[[0.0, 0.0, 0.0]], block_start=6, row_start=2,
    )  # fmt: skip
    found = decoder.exponential(view)
    expected = confidence * -math.log(0.5 + 1e-9) * torch.exp(-torch.tensor([[4.0, 5.0, 6.0]]))
    torch.testing.assert_close(found.float(), expected)


def test_a_short_last_block_has_its_own_length(view_of: View, facts: Bind) -> None:
    decoder = PCSampler(1.0, weight="linear").bind(facts())
    view = view_of(
        confidence=[0.1] * 6, masked=[True, False, True, True, False, False],
        editable=[False, True, False, False, False, False],
    )  # fmt: skip
    assert decoder.linear(view)[0, :4].tolist() == [1.0, 0.75, 0.5, 0.25]


def test_sources_of_frequencies_agree(tmp_path: Path, facts: Bind) -> None:
    table = [0.5, 0.01, 0.01, 0.09, 0.01, 0.01, 0.01, 0.01]
    plain = tmp_path / "plain.json"
    plain.write_text(json.dumps(table))
    sources: list[Any] = [
        table, tuple(table), torch.tensor(table), torch.tensor(table, dtype=torch.float64), plain,
        str(plain), counts(tmp_path / "a.json", 1), counts(tmp_path / "b.json", 1,
        "token_frequency_dict"), "model",
    ]  # fmt: skip
    for source in sources:
        found = PCSampler(frequencies=source).bind(facts(table)).table
        assert found is not None
        assert found.dtype == torch.float32
        assert torch.equal(found, torch.tensor(table)), source


def test_decoders_with_equal_frequencies_are_equal() -> None:
    one, other = PCSampler(frequencies=[0.5, 0.5]), PCSampler(frequencies=torch.tensor([0.5, 0.5]))
    assert one == other
    assert hash(one) == hash(other)
    assert one != PCSampler(frequencies=[0.5, 0.25])


def test_the_models_own_frequencies_need_no_file(toy: Callable[..., Model]) -> None:
    """'model' is the mean prediction on masks, of words as if stop tokens did not exist."""
    table = torch.zeros(1, 8)
    table[0, 2], table[0, 6], table[0, 7] = 3.0, 12.0, 9.0
    model = toy(table)
    open_, words = table[0].clone(), table[0].clone()
    open_[7] = -torch.inf
    words[5:] = -torch.inf
    expected = words.softmax(-1)
    expected[5:7] = open_.softmax(-1)[5:7]
    assert background(model).tolist() == pytest.approx(expected.tolist(), abs=1e-6)
    options: dict[str, Any] = {"gen_length": 6, "decoder": "pc_sampler", "stop_at_eos": False}
    own = dlm.generate(model, [[1]], decoder_options={"frequencies": "model"}, **options)
    listed = dlm.generate(
        model, [[1]], decoder_options={"frequencies": background(model).tolist()}, **options
    )
    assert own.tokens == listed.tokens


@pytest.mark.parametrize("frequencies", [[0.1] * 7, [0.1] * 3 + [1.5] + [0.1] * 4, [0.0] * 8])
def test_frequencies_that_do_not_fit_are_refused(
    toy: Callable[..., Model], frequencies: list[float]
) -> None:
    with pytest.raises(ValueError, match="frequencies must"):
        dlm.generate(
            toy(), [[1]], gen_length=2, decoder="pc_sampler",
            decoder_options={"frequencies": frequencies},
        )  # fmt: skip


def test_unbound_it_does_not_decode(view_of: View) -> None:
    with pytest.raises(ValueError, match="call bind"):
        PCSampler().step(None, view_of(confidence=[0.5]))
