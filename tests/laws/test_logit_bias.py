"""A bias of logits decodes as a network whose head has that bias."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch

import dlm
from dlm.decoders import DECODERS, LowConfidence
from dlm.decoders.base import Stateless
from dlm.execution import Execution
from dlm.models.model import Model
from dlm.settings import Settings
from dlm.types import Decision, StepView

MASK, EOS, EOT = 7, 6, 5
ROWS = [[1, 2, 3, 4, 3, 2, 1], [2], [3, 1, 4]]
BIAS = {0: -1.5, 3: 0.75, EOT: -2.0, EOS: -0.25, MASK: 50.0}
Toy = Callable[..., Model]


@dataclass(frozen=True, slots=True)
class Loudest(Stateless):
    """Commits the masks of the largest logit, and notes the logits."""

    paper: ClassVar[str] = "none"
    needs: ClassVar[frozenset[str]] = frozenset({"logits"})
    seen: ClassVar[list[torch.Tensor]] = []

    def step(self, state: None, view: StepView) -> tuple[None, Decision]:
        logits = view.want("logits")
        self.seen.append(logits.clone())
        best = logits.amax(-1).masked_fill(~view.masked, -torch.inf)
        return None, Decision(view.masked & (best == best.amax(-1, keepdim=True)))


def variants() -> list[tuple[Any, dict[str, Any]]]:
    """Every decoder, and paths through some that read more: adjusted logits, likeliest tokens."""
    more: list[tuple[str, dict[str, Any]]] = [
        ("first_hitting", {"order": 2}), ("credit", {"adaptive": True}),
        ("dream", {"alg": "topk_margin"}), ("block_refinement", {"editing_threshold": 0.5}),
    ]  # fmt: skip
    own: dict[str, dict[str, Any]] = {
        "remdm": {"loop_steps": 3},
        "pc_sampler": {"frequencies": [0.125] * 8},
    }
    return [*[(name, own.get(name, {})) for name in DECODERS], *more]


def biased(table: torch.Tensor, bias: dict[int, float]) -> torch.Tensor:
    """The logits of a network with that bias."""
    made = table.to(torch.promote_types(table.dtype, torch.float32), copy=True)
    for token, value in bias.items():
        made[:, token] += value
    return made


def table_of(seed: int) -> torch.Tensor:
    return 2.0 * torch.randn(97, 8, generator=torch.Generator().manual_seed(seed))


def same(model: Model, other: Model, **options: Any) -> dlm.Generation:
    """Whether a model with the bias decodes like another without, down to confidences."""
    usual: dict[str, Any] = {"gen_length": 11, "block_length": 4, "stop_at_eos": False}
    usual |= {"return_trajectory": True, "seed": 2, **options}
    found = dlm.generate(model, ROWS, logit_bias=BIAS, **usual)
    expected = dlm.generate(other, ROWS, **usual)
    assert found.tokens == expected.tokens != dlm.generate(model, ROWS, **usual).tokens
    assert found.forwards == expected.forwards
    assert found.trajectory is not None
    assert expected.trajectory is not None
    for one, two in zip(found.trajectory, expected.trajectory, strict=True):
        for mine, theirs in ((one.commits, two.commits), (one.edits, two.edits)):
            assert [each[:3] for each in mine] == [each[:3] for each in theirs]
            sure = [each.confidence for each in theirs]
            assert [each.confidence for each in mine] == pytest.approx(sure, abs=1e-6, nan_ok=True)
        assert [each[:3] for each in one.remasks] == [each[:3] for each in two.remasks]
    return found


@pytest.mark.one_in(10)
@pytest.mark.parametrize("options", [
    {}, {"temperature": 1.0}, {"temperature": 0.7, "top_p": 0.8, "cfg_scale": 0.5},
    {"cfg_scale": 0.5, "suppress_tokens": [3], "begin_suppress_tokens": [0]},
], ids=str)  # fmt: skip
@pytest.mark.parametrize(("decoder", "own"), variants(), ids=str)
def test_decodes_as_a_network_with_that_bias(
    toy: Toy, decoder: str, own: dict[str, Any], options: dict[str, Any]
) -> None:
    model, other = toy(table_of(5)), toy(biased(table_of(5), BIAS))
    same(model, other, decoder=decoder, decoder_options=own, **options)


@pytest.mark.parametrize("decoder", ["credit", "dream"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_stop_tokens_that_come_last(toy: Toy, decoder: str, temperature: float) -> None:
    options = {"decoder": decoder, "temperature": temperature, "confidence_eos_eot_inf": True}
    same(toy(table_of(3)), toy(biased(table_of(3), BIAS)), **options)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_tokens_that_are_asked_about_again(toy: Toy, temperature: float) -> None:
    """With a mask in their place."""
    options: dict[str, Any] = {"decoder_options": {"threshold": 0.2, "threshold_back": 0.3}}
    options |= {"gen_length": 24, "block_length": None}
    model, other = toy(table_of(2)), toy(biased(table_of(2), BIAS))
    found = same(model, other, decoder="wino", temperature=temperature, **options)
    assert any(row.remasks for row in found.trajectory or ())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_reads_logits_sees_it(toy: Toy, dtype: torch.dtype, temperature: float) -> None:
    """In full, whatever the dtype of the logits; and what is banned stays so."""
    table = table_of(4).to(dtype)
    options: dict[str, Any] = {"decoder": Loudest(), "temperature": temperature}
    Loudest.seen.clear()
    same(toy(table), toy(biased(table, BIAS)), **options)
    assert Loudest.seen[0].dtype == torch.promote_types(dtype, torch.float32)
    assert all((each[..., MASK] <= 0).all() for each in Loudest.seen)
    seen = Loudest.seen[0]
    lively = seen[..., 0] != 0  # padding
    rows = biased(table, BIAS)[:, :MASK]
    assert all((rows == each).all(-1).any() for each in seen[lively][..., :MASK])


def test_a_network_with_a_head(golden: Model) -> None:
    """A real one, whose rows share a batch."""
    bias = {7: 3.0, 90: -2.0, 400: 1.5}
    network = golden.network
    logits = type(golden).logits

    @dataclass(frozen=True, slots=True)
    class Headed(Model):
        def logits(self, hidden: torch.Tensor) -> torch.Tensor:
            return biased(logits(golden, hidden), bias)

    other = Headed(network, golden.tokenizer, golden.spec)
    for options in ({}, {"temperature": 1.0, "cfg_scale": 0.5}, {"cache": "dual"}):
        usual: dict[str, Any] = {"gen_length": 8, "block_length": 4, **options}
        expected = dlm.generate(other, [[1, 2, 3], [5]], **usual)
        assert dlm.generate(golden, [[1, 2, 3], [5]], logit_bias=bias, **usual) == expected


def test_zeros_and_suppressed_tokens_mean_nothing(toy: Toy) -> None:
    model = toy(table_of(1))
    plain = dlm.generate(model, ROWS, gen_length=9, temperature=1.0)
    for bias in ({}, None, {3: 0}, {3: 0.0, "4": 0}):
        options: Any = {"gen_length": 9, "temperature": 1.0, "logit_bias": bias}
        assert dlm.generate(model, ROWS, **options) == plain
    out = dlm.generate(model, ROWS, gen_length=9, logit_bias={3: 1e6}, suppress_tokens=[3])
    assert not any(3 in row for row in out.tokens)
    first = dlm.generate(
        model, ROWS, gen_length=9, logit_bias={3: 1e6}, begin_suppress_tokens=[3], stop_at_eos=False
    )
    assert all(row[0] != 3 and set(row[1:]) == {3} for row in first.tokens)


def test_stream_and_infill_take_it(toy: Toy) -> None:
    model = toy(table_of(1))
    *_, last = dlm.stream(model, [1], gen_length=5, logit_bias={"2": 1e6})
    assert last.tokens == [2] * 5
    assert dlm.infill(model, [1, MASK, 4, MASK], logit_bias={2: 1e6}).tokens == [[1, 2, 4, 2]]


def test_a_mapping_that_changes_later_changes_nothing(toy: Toy) -> None:
    bias = {1: -100.0}
    options: dict[str, Any] = {"gen_length": 6, "stop_at_eos": False}
    steps = dlm.stream(toy(1), [1], logit_bias=bias, **options)
    bias.clear()
    expected = dlm.generate(toy(1), [[1]], logit_bias={1: -100.0}, **options).tokens
    assert [snapshot.tokens for snapshot in steps][-1:] == expected
    assert expected != dlm.generate(toy(1), [[1]], **options).tokens


def test_kept_steps_heed_it(golden: Model, execution: Execution) -> None:
    """Those with another bias are others; how it is written makes no difference."""

    def run(each: Execution, bias: Any) -> list[list[int]]:
        model = Model(golden.network, None, golden.spec)
        settings: dict[str, Any] = {"gen_length": 6, "cache": "dual", "logit_bias": bias}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Execution, "of", staticmethod(lambda model: each))
            return dlm.generate(model, [[1, 2, 3]], **settings).tokens

    found = []
    for bias in ({4: 9.0}, {4: 9.0}, {5: 9.0}, None, {"5": 9, 6: 0}):
        found.append(run(execution, bias))
        assert found[-1] == run(Execution(), bias)
    assert found[0] == found[1] != found[2] == found[4] != found[3]


def test_of_steps_tells_biases_apart() -> None:
    one, two, same_as_one, none, zero = (
        Settings(logit_bias=bias).of_steps  # type: ignore[arg-type]
        for bias in ({3: 1.0, 2: 5}, {3: 1.0, 2: 6}, {"2": 5.0, "3": 1, 9: 0}, None, {4: 0})
    )
    assert one == same_as_one != two
    assert none == zero != one
    assert replace(Settings(), decoder=LowConfidence()).of_steps == none


@pytest.mark.parametrize(
    ("bias", "message"),
    [
        ([3], "logit_bias must map each token id to a number, got"),
        ({"a": 1}, "logit_bias: each token id must be an int >= 0, got 'a'"),
        ({"03": 1}, "must be an int >= 0, got '03'"),
        ({-1: 1}, "must be an int >= 0, got -1"),
        ({True: 1}, "must be an int >= 0, got True"),
        ({1.0: 1}, "must be an int >= 0, got 1.0"),
        ({3: 1, "3": 1}, "logit_bias must have each token id once, got 3 twice"),
        ({3: "1"}, r"logit_bias\[3\] must be a finite number in \[-1e\+06, 1e\+06\], got '1'"),
        ({3: float("nan")}, "must be a finite number"),
        ({3: 2e6}, "must be a finite number"),
        ({8: 0}, "logit_bias: each token id must be an int <= 7, got 8"),
    ],
)
def test_what_it_must_be(toy: Toy, bias: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dlm.generate(toy(1), [[1]], gen_length=3, logit_bias=bias)
