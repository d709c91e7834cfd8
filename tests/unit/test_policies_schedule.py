"""Learned schedules (policies.md 6.6): what an artefact changes, and what it must fit."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dlm
from dlm.decoders import Schedule
from dlm.decoders.artefact import ModelFacts, ScheduleArtefact
from dlm.decoders.resample import fractions
from dlm.models.model import Model
from dlm.types import Facts, StepView

Toy = Callable[..., Model]
View = Callable[..., StepView]
Bind = Callable[..., Facts]
Script = Callable[..., list[Any]]

files = settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def artefact(folder: Path, reveal: tuple[int, ...], **changes: Any) -> Path:
    """The file of a schedule for blocks of sum(reveal) tokens and the toy model."""
    length = sum(reveal)
    values: dict[str, Any] = {
        "model": ModelFacts(vocab=8, mask_id=7),
        "gen_length": length,
        "block_length": length,
        "steps": len(reveal),
        "reveal": reveal,
        "cum_fraction": fractions(reveal),
        "logit_scale": (1.0,) * len(reveal),
    }
    schedule = ScheduleArtefact(**(values | changes))
    path = folder / "schedule.json"
    schedule.save(path)
    return path


def commits(out: dlm.Generation, row: int = 0) -> list[int]:
    assert out.trajectory is not None
    steps = [change.step for change in out.trajectory[row].commits]
    return [steps.count(step) for step in range(out.forwards[row])]


def decode(model: Model, path: Path | None, **options: Any) -> dlm.Generation:
    return dlm.generate(
        model, [[1]], decoder="schedule", decoder_options={"path": path}, return_trajectory=True,
        **{"stop_at_eos": False, "block_length": None, **options},
    )  # fmt: skip


reveals = st.lists(st.integers(1, 5), min_size=1, max_size=6).map(tuple)


@files
@given(reveals, st.integers(1, 24), st.integers(1, 9))
def test_counts_are_the_plan_of_each_block(
    toy: Toy, tmp_path: Path, reveal: tuple[int, ...], length: int, block: int
) -> None:
    """T6.5: resampled to the block and to a shorter last one; all masks, one or more a forward."""
    path = artefact(tmp_path, reveal)
    plan = ScheduleArtefact.load(path).counts
    out = decode(toy(), path, gen_length=length, block_length=block)
    sizes = [min(block, length - i) for i in range(0, length, block)]
    found = commits(out)
    assert found == [count for size in sizes for count in plan(size)]
    assert sum(found) == length
    assert min(found) >= 1


@files
@given(st.integers(0, 99), st.integers(1, 12), st.integers(1, 12), st.integers(1, 14))
def test_the_identity_is_low_confidence(
    toy: Toy, tmp_path: Path, seed: int, length: int, block: int, steps: int
) -> None:
    """T6.1: token for token, with a file and without, with a budget and without."""
    for path, budget in ((None, None), (None, steps), (self_made(tmp_path, length, steps), None)):
        options: dict[str, Any] = {"gen_length": length, "block_length": block, "steps": budget}
        if path is not None:
            options |= {"block_length": None}
        out = decode(toy(seed), path, **options)
        if path is not None:
            options["steps"] = steps
        plain = dlm.generate(toy(seed), [[1]], stop_at_eos=False, return_trajectory=True, **options)
        assert out.tokens == plain.tokens
        assert commits(out) == commits(plain)


def self_made(folder: Path, length: int, steps: int) -> Path:
    path = folder / "identity.json"
    ScheduleArtefact.identity(length, 8, 7, steps=steps).save(path)
    return path


def test_a_budget_raises_the_plan(toy: Toy, tmp_path: Path) -> None:
    path = artefact(tmp_path, (1, 1, 1, 1, 4))
    assert commits(decode(toy(), path, gen_length=8)) == [1, 1, 1, 1, 4]
    assert commits(decode(toy(), path, gen_length=8, steps=2)) == [4, 4]


def test_rows_follow_their_own_plans(toy: Toy, tmp_path: Path) -> None:
    path = artefact(tmp_path, (1, 3, 2))
    rows = [[1, 7, 7, 7], [1, 2, *[7] * 6], [7]]
    out = dlm.infill(
        toy(), rows, decoder="schedule", decoder_options={"path": path}, block_length=6,
        return_trajectory=True,
    )  # fmt: skip
    plan = ScheduleArtefact.load(path).counts
    assert [commits(out, row) for row in range(3)] == [list(plan(n)) for n in (3, 6, 1)]


@pytest.mark.parametrize("scaled", [True, False])
def test_greedy_tokens_ignore_the_scale_and_confidence_may(
    toy: Toy, tmp_path: Path, scaled: bool
) -> None:
    """At T = 0 a scale moves no arg max; it shows in confidence only if told to."""
    table = torch.randn(97, 8, generator=torch.Generator().manual_seed(5))
    path = artefact(tmp_path, (4,), logit_scale=(0.5,), scale_confidence=scaled)
    found, plain = (decode(toy(table), p, gen_length=4, steps=1) for p in (path, None))
    assert found.tokens == plain.tokens
    assert found.trajectory is not None
    factor = 0.5 if scaled else 1.0
    half = decode(toy(factor * table), None, gen_length=4, steps=1)
    assert half.trajectory is not None
    for one, other in zip(found.trajectory[0].commits, half.trajectory[0].commits, strict=True):
        assert one.confidence == pytest.approx(other.confidence, rel=1e-6)


@pytest.mark.parametrize("scaled", [True, False])
def test_samples_follow_the_scaled_law(toy: Toy, tmp_path: Path, scaled: bool) -> None:
    """At T > 0 a scale sharpens what is drawn, whatever confidence shows."""
    table = torch.full((97, 8), -torch.inf)
    table[:, 0], table[:, 1] = 1.0, 0.0
    length = 400
    path = artefact(tmp_path, (length,), logit_scale=(3.0,), scale_confidence=scaled)
    out = decode(toy(table), path, gen_length=length, temperature=1.0)
    share = out.tokens[0].count(0) / length
    assert share == pytest.approx(1 / (1 + torch.e**-3), abs=0.03), "0.95 and not 0.73"
    assert out.trajectory is not None
    shown = {round(c.confidence, 3) for c in out.trajectory[0].commits if c.token == 0}
    assert shown == {0.953 if scaled else 0.731}


BASES: dict[str, dict[str, list[float]]] = {
    "low_confidence": {"confidence": [0.1, 0.9, 0.5]},
    "margin": {"margin": [0.1, 0.9, 0.5]},
    "entropy": {"entropy": [0.9, 0.1, 0.5]},
    "random": {"uniform": [0.9, 0.1, 0.5]},
    "left_to_right": {"positions": [5, 3, 4]},
}


@pytest.mark.parametrize("base", BASES)
def test_the_base_policy_ranks(view_of: View, facts: Bind, tmp_path: Path, base: str) -> None:
    path = artefact(tmp_path, (2, 1), base_policy=base)
    decoder = Schedule(path).bind(facts())
    ranks = base not in ("random", "left_to_right")
    assert decoder.needs == set(BASES[base]) - {"positions"} | (
        {"position_noise"} if ranks else set()
    )
    assert decoder.blind == (base != "low_confidence")
    view = view_of(**({"confidence": [0.5, 0.5, 0.5]} | BASES[base]))
    _, decision = decoder.step(decoder.init_state(1, 3), view)
    assert decision.commit.tolist() == [[False, True, True]]


@pytest.mark.parametrize("base", ["random", "left_to_right"])
@pytest.mark.parametrize(
    "option", [{"position_temperature": 5.0}, {"confidence_eos_eot_inf": True}]
)
def test_options_that_the_base_ignores_are_refused(
    toy: Toy, tmp_path: Path, base: str, option: dict[str, Any]
) -> None:
    """As they are for the base itself."""
    path = artefact(tmp_path, (2, 1), base_policy=base)
    with pytest.raises(ValueError, match=next(iter(option))):
        decode(toy(), path, gen_length=3, **option)


def test_a_bound_schedule_is_a_value_and_can_be_bound_again(facts: Bind, tmp_path: Path) -> None:
    path = artefact(tmp_path, (2, 1), logit_scale=(1.5, 1.0))
    one, other = (Schedule(path).bind(facts()) for _ in range(2))
    assert one == other
    assert hash(one) == hash(other)
    assert one.bind(facts()) == one
    with pytest.raises(ValueError, match="vocab 8"):
        one.bind(facts(vocab=9))


def test_bases_equal_their_policies(toy: Toy, tmp_path: Path) -> None:
    for base in BASES:
        path = artefact(tmp_path, (3, 3, 2), base_policy=base)
        played = decode(toy(7), path, gen_length=8, temperature=0.7)
        plain = dlm.generate(
            toy(7), [[1]], decoder=base, gen_length=8, steps=3, block_length=None,
            temperature=0.7, stop_at_eos=False,
        )  # fmt: skip
        assert played.tokens == plain.tokens, base


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": ModelFacts(vocab=9, mask_id=7)}, "vocab 9 and mask_id 7.*vocab 8 and mask_id 7"),
        ({"model": ModelFacts(vocab=8, mask_id=6)}, "vocab 8 and mask_id 6.*vocab 8 and mask_id 7"),
        ({"base_policy": "saber"}, "unknown base_policy of .*schedule.json.* 'saber'.*Known"),
        ({"base_policy": "low_confidense"}, "Did you mean 'low_confidence'"),
    ],
)
def test_what_does_not_fit_is_refused(
    toy: Toy, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        decode(toy(), artefact(tmp_path, (2, 2), **changes), gen_length=4)


def test_a_schedule_of_the_whole_needs_one_block(toy: Toy, tmp_path: Path) -> None:
    path = artefact(tmp_path, (1, 2, 5), gen_length=8, block_length=4, scope="generation", steps=3)
    assert commits(decode(toy(), path, gen_length=8)) == [1, 2, 5]
    assert commits(decode(toy(), path, gen_length=8, block_length=8)) == [1, 2, 5]
    with pytest.raises(ValueError, match=r"block_length must be None, or span .* got 2 blocks"):
        decode(toy(), path, gen_length=8, block_length=4)


@pytest.mark.parametrize("suffix", [(), (3,)])
@pytest.mark.parametrize("length", [None, 8])
def test_a_schedule_of_the_whole_takes_rows_of_unlike_lengths(
    toy: Toy, tmp_path: Path, suffix: tuple[int, ...], length: int | None
) -> None:
    path = artefact(tmp_path, (1, 2, 5), gen_length=8, block_length=4, scope="generation", steps=3)
    plain = toy()
    model = replace(plain, spec=replace(plain.spec, suffix=suffix))
    options: dict[str, Any] = {
        "decoder": "schedule", "decoder_options": {"path": path}, "gen_length": 8,
        "stop_at_eos": False,
    }  # fmt: skip
    rows = [[1], [1, 2, 3, 4, 0, 1]]
    together = dlm.generate(model, rows, block_length=length, **options)
    alone = [dlm.generate(model, [row], block_length=length, **options).tokens[0] for row in rows]
    assert together.tokens == alone
    assert together.forwards == [3, 3]


def test_files_that_are_not_there_or_changed(toy: Toy, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"path must be a file .*none\.json"):
        decode(toy(), tmp_path / "none.json", gen_length=4)
    path = artefact(tmp_path, (2, 2))
    path.write_text(path.read_text().replace('"temperature":0.0', '"temperature":1.0'))
    with pytest.raises(ValueError, match="checksum"):
        decode(toy(), path, gen_length=4)


def test_unbound_it_does_not_decode(view_of: View) -> None:
    with pytest.raises(ValueError, match="call bind"):
        Schedule().step(torch.zeros(1), view_of(confidence=[0.5]))


def test_the_masks_of_a_block_are_counted_once(script: Script, facts: Bind, tmp_path: Path) -> None:
    """Forward k reveals n_k of the plan for the masks that the block began with."""
    path = artefact(tmp_path, (1, 2, 4))
    decoder = Schedule(path).bind(replace(facts(), block_length=7))
    history = script(decoder, lambda *_: {"confidence": torch.rand(1, 7)}, [True] * 7)
    assert [int(decision.commit.sum()) for _, decision in history] == [1, 2, 4]
