"""Learning schedules of a toy network (policies.md 6.6): trajectories, choices, going on."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import dlm
from dlm.decoders.artefact import ScheduleArtefact
from dlm.distill import schedule_align
from dlm.distill.schedule import Distiller, Origin, Recipe
from dlm.distill.schedule_align import Aligner, shares, thinned
from dlm.distill.schedule_ledger import Trajectory
from dlm.distill.schedule_rollout import Plan, Student, mistakes, teach
from dlm.distill.schedule_states import BASES, Layout
from dlm.models.model import Model

Toy = Callable[..., Model]

PROMPTS = [[1], [2, 3], [0, 1, 2], [4, 4], [3]]


class Stopped(Exception):
    """What stands for a user's Ctrl-C."""


def distiller(model: Model, folder: Path, report: Any = None, **options: Any) -> Distiller:
    recipe = Recipe(**({"gen_length": 8, "block_length": None, "batch_size": 2} | options))
    more = {} if report is None else {"report": report}
    origin = Origin("toy", {"weights": "toy"})
    return Distiller.of(model, PROMPTS, recipe, folder, origin=origin, **more)


def training(artefact: ScheduleArtefact) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(artefact.training)
    return found


def state(layout: Layout, rows: list[Trajectory], done: int) -> torch.Tensor:
    tokens = torch.tensor([each.tokens for each in rows])
    order = torch.tensor([each.order for each in rows])
    return tokens.masked_fill(order >= done, layout.model.spec.mask_id)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("block", [None, 3, 4])
def test_the_teacher_is_the_engine_and_its_mistakes_are_those_of_its_states(
    toy: Toy, base: str, block: int | None
) -> None:
    model = toy(1)
    layout = Layout.of(model, PROMPTS, 8, block)
    rows = range(len(PROMPTS))
    found = teach(layout, base, rows)
    out = dlm.generate(
        model, PROMPTS, decoder=base, gen_length=8, block_length=block, stop_at_eos=False,
        return_order=True,
    )  # fmt: skip
    assert [each.tokens for each in found] == out.tokens
    assert [each.order for each in found] == out.order
    answer = torch.tensor(out.tokens)
    done = 0
    for number, size in enumerate(layout.sizes):
        for masks in range(size, 0, -1):
            ranked = layout.rank(state(layout, found, done), rows, number, base)
            assert [each.wrong[done] for each in found] == mistakes(ranked, answer, masks)
            done += 1
    assert any(any(each.wrong) for each in found)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("ranks_scaled", [True, False])
@pytest.mark.parametrize(("length", "block"), [(8, 8), (7, 3), (8, 4)])
def test_a_student_plays_as_the_decoder_does(
    toy: Toy, tmp_path: Path, base: str, ranks_scaled: bool, length: int, block: int
) -> None:
    model = toy(2)
    counts = {8: (4, 3, 1), 3: (2, 1), 4: (1, 2, 1)}[block]
    plan = Plan(counts, (1.0, 0.6, 1.7)[: len(counts)])
    layout = Layout.of(model, PROMPTS, length, block)
    rows = range(len(PROMPTS))
    found = Student(layout, base, plan, ranks_scaled).play(rows)
    path = tmp_path / "schedule.json"
    made = distiller(model, tmp_path, gen_length=length, block_length=block, base_policy=base,
                     scale_confidence=ranks_scaled)  # fmt: skip
    candidate = made.judge("x", plan, made.table(made.teachers()), found, made.teachers())
    uniform = made.judge("uniform", Plan.plain(made.even(len(counts))), made.table(made.teachers()),
                         found, made.teachers())  # fmt: skip
    made.artefact(len(counts) * len(layout.sizes), candidate, [candidate, uniform]).save(path)
    out = dlm.generate(
        model, PROMPTS, decoder="schedule", decoder_options={"path": path}, gen_length=length,
        block_length=block, stop_at_eos=False, return_order=True,
    )  # fmt: skip
    assert [each.tokens for each in found] == out.tokens
    assert out.order is not None
    for each, order in zip(found, out.order, strict=True):
        starts = [sum(n < forward for n in order) for forward in order]
        assert each.order == starts


def test_a_sweep_meets_every_mask_count(toy: Toy) -> None:
    model = toy(3)
    layout = Layout.of(model, PROMPTS, 8, 4)
    rows = range(len(PROMPTS))
    teachers = teach(layout, "low_confidence", rows)
    answer = torch.tensor([each.tokens for each in teachers])
    student = Student(layout, "low_confidence", Plan.plain((3, 1)), True)
    swept, played = student.play(rows, answer), student.play(rows)
    assert [each.tokens for each in swept] == [each.tokens for each in played]
    assert [each.order for each in swept] == [each.order for each in played]
    assert all(len(each.wrong) == 8 for each in swept)
    # In between, what was revealed last is hidden again, in the order of the ranking.
    spans = layout.blank(len(PROMPTS))
    ranked = layout.rank(spans, rows, 0, "low_confidence")
    for done in range(3):
        part = spans.scatter(1, ranked.column[:, :done], ranked.token[:, :done])
        again = layout.rank(part, rows, 0, "low_confidence")
        assert [each.wrong[done] for each in swept] == mistakes(again, answer, 4 - done)


@pytest.mark.parametrize("block", [None, 4])
def test_the_teachers_own_budget_learns_nothing(
    toy: Toy, tmp_path: Path, block: int | None
) -> None:
    """T6.6: N = L gives one token a forward, scales of exactly 1, no loss and no mistake."""
    made = distiller(toy(4), tmp_path, block_length=block).learn(8)
    length = block or 8
    assert made.reveal == (1,) * length
    assert made.logit_scale == (1.0,) * length
    assert training(made)["loss"] == pytest.approx([0] * length, abs=1e-9)
    assert training(made)["error"] == {"predicted": 0, "realised": 0, "uniform": 0}


@pytest.mark.parametrize("base", BASES)
def test_the_choice_is_no_worse_than_any_candidate(toy: Toy, tmp_path: Path, base: str) -> None:
    made = distiller(toy(5), tmp_path, base_policy=base).learn(3)
    record = training(made)
    assert record["error"]["realised"] == min(each["realised"] for each in record["candidates"])
    assert "uniform" in [each["name"] for each in record["candidates"]]
    assert (made.steps, made.scope, made.block_length) == (3, "generation", 8)
    assert sum(made.reveal) == 8
    assert made.base_policy == base


def test_prediction_is_exact_where_positions_are_independent(toy: Toy, tmp_path: Path) -> None:
    """A network that looks at nothing: the student is never wrong, and the table knows."""
    model = toy(torch.randn(1, 8))
    record = training(distiller(model, tmp_path).learn(2))
    assert record["error"] == {"predicted": 0, "realised": 0, "uniform": 0}


def bytes_of(folder: Path, artefact: ScheduleArtefact) -> dict[str, bytes]:
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    return files | {"artefact": artefact.to_json().encode()}


@pytest.mark.parametrize("relax", [0.0, 0.25])
def test_a_stopped_run_goes_on_to_the_same_bytes(toy: Toy, tmp_path: Path, relax: float) -> None:
    reports: list[Any] = []
    whole = distiller(toy(6), tmp_path / "whole", lambda *told: reports.append(told), relax=relax)
    wanted = bytes_of(tmp_path / "whole", whole.learn(3))
    for stop in range(1, len(reports), 7):
        seen = 0

        def report(*_: Any, stop: int = stop) -> None:
            nonlocal seen
            seen += 1
            if seen == stop:
                raise Stopped

        folder = tmp_path / str(stop)
        with pytest.raises(Stopped):
            distiller(toy(6), folder, report, relax=relax).learn(3)
        found = distiller(toy(6), folder, relax=relax).learn(3)
        assert bytes_of(folder, found) == wanted


def test_budgets_share_the_teacher(toy: Toy, tmp_path: Path) -> None:
    reports: list[Any] = []
    made = distiller(toy(6), tmp_path, lambda *told: reports.append(told))
    made.learn(2)
    reports.clear()
    made.learn(4)
    assert [told for told in reports if told[0] == "teacher"] == [("teacher", 5, 5)]


def test_relaxing_keeps_the_state_of_least_loss(toy: Toy) -> None:
    """The teacher's own state is among those that are tried."""
    layout = Layout.of(toy(7), PROMPTS, 8, None)
    rows = range(len(PROMPTS))
    teachers = teach(layout, "low_confidence", rows)
    students = Student(layout, "low_confidence", Plan.plain((5, 3)), True).play(rows)
    aligner = Aligner(layout, students, teachers, flips=2, seed=0, batch_size=2)
    spans, picked = state(layout, students, 5), []
    for row in rows:
        logits = layout.logits(spans[[row]], [row], 0)[..., ~layout.suppressed]
        losses: list[float] = []
        for near in aligner.states([row], 0, 5, 1):
            own = state(layout, teachers, 5)[[row]]
            assert int((near != own).sum()) == (2 if losses else 0)
            shared = aligner.open(spans[[row]], 0) & aligner.open(near, 0)
            told = layout.logits(near, [row], 0)[..., ~layout.suppressed]
            losses.append(float(aligner.losses(logits, told, shared)))
        least = min(losses)
        picked.append(losses.index(least))
        found = aligner.part([row], 0, 5, 1, [100])
        assert found.loss(1.0) == pytest.approx(0 if least == torch.inf else least)
    assert any(picked)
    # In a batch each row keeps its own.
    parts = [aligner.part([row], 0, 5, 1, [100]).divergence(1.0) for row in rows]
    whole = aligner.part(rows, 0, 5, 1, [100] * 5)
    assert torch.equal(whole.divergence(1.0), torch.cat(parts))


def test_a_fit_takes_no_more_positions_than_it_may(toy: Toy) -> None:
    layout = Layout.of(toy(7), PROMPTS, 8, None)
    rows = range(len(PROMPTS))
    teachers = teach(layout, "low_confidence", rows)
    aligner = Aligner(layout, teachers, teachers, flips=0, seed=0, batch_size=2)
    assert len(aligner.part(rows, 0, 3, 0, [2, 1, 0, 3, 1]).mean) == 7
    assert len(aligner.part(rows, 0, 3, 0, [1000] * 5).mean) == 5 * 5


@pytest.mark.parametrize("block", [None, 4])
@pytest.mark.parametrize("positions", [2, 7, 13])
def test_scales_do_not_hang_on_the_batch_size(
    toy: Toy, monkeypatch: pytest.MonkeyPatch, block: int | None, positions: int
) -> None:
    """A cap that binds, also one below the number of prompts, holds and picks the same."""
    monkeypatch.setattr(schedule_align, "VALUES", positions * 8)
    layout = Layout.of(toy(7), PROMPTS, 8, block)
    plan = Plan.plain((5, 3) if block is None else (2, 2))
    teachers = teach(layout, "low_confidence", range(5))
    students = Student(layout, "low_confidence", plan, True).play(range(5))
    found = []
    for size in (1, 2, 5):
        aligner = Aligner(layout, students, teachers, flips=0, seed=0, batch_size=size)
        kept = [sum(len(part.mean) for part in aligner.parts(plan, n)) for n in range(2)]
        assert 0 < kept[0] <= positions
        assert kept[1] <= positions
        fits = aligner.fit(plan, lambda *_: None)
        found.append([x for fit in fits for x in (fit.scale, fit.before, fit.after)])
    assert found[1] == pytest.approx(found[0], abs=1e-6)
    assert found[2] == pytest.approx(found[0], abs=1e-6)


def test_a_share_is_spread_and_sums_to_the_whole() -> None:
    assert shares(7, 3) == [2, 2, 3]
    assert shares(2, 6) == [0, 0, 1, 0, 0, 1]
    flags = torch.tensor([True, False, True, True, True, False, True])
    picked = [thinned(flags, 2, row) for row in range(20)]
    assert all(int(each.sum()) == 2 and not (each & ~flags).any() for each in picked)
    assert torch.equal(torch.stack(picked).any(0), flags)
    assert torch.equal(thinned(flags, 5, 3), flags)


def test_a_seed_that_is_not_given_is_0(toy: Toy, tmp_path: Path) -> None:
    plain = distiller(toy(6), tmp_path / "a", relax=0.25).learn(3)
    given = distiller(toy(6), tmp_path / "b", relax=0.25, seed=0).learn(3)
    other = distiller(toy(6), tmp_path / "c", relax=0.25, seed=3).learn(3)
    assert plain.to_json() == given.to_json()
    assert (training(plain)["seed"], training(other)["seed"]) == (0, 3)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"base_policy": "random"}, "unknown base_policy"),
        ({"gen_length": 0}, "gen_length must be"),
        ({"block_length": 0}, "block_length must be"),
        ({"refreshes": 4}, "refreshes must be"),
        ({"scale": 1}, "scale must be True or False"),
        ({"scale_confidence": "no"}, "scale_confidence must be"),
        ({"relax": 1.5}, "relax must be"),
        ({"relax": 0.5, "scale": False}, "relax is for the fit of scales"),
        ({"seed": 0}, "seed is for the states that relax tries, got 0 without relax"),
        ({"scale": False, "scale_confidence": False}, "scale_confidence is for rankings"),
        ({"relax": 0.05}, "at least one token of a block of 8"),
        ({"seed": -1}, "seed must be"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"gen_length": 600}, "512 positions"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_bad_recipes_are_refused(
    toy: Toy, tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        distiller(toy(), tmp_path, **change)


@pytest.mark.parametrize(
    ("budget", "says"), [(0, "budget must be"), (3, "multiple of the 2 blocks"), (10, "at most 8")]
)
def test_bad_budgets_are_refused(toy: Toy, tmp_path: Path, budget: int, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        distiller(toy(), tmp_path, block_length=4).learn(budget)


def test_prompts_off_the_networks_blocks_are_refused(toy: Toy) -> None:
    with pytest.raises(ValueError, match="every 2 tokens, got one of 1 tokens"):
        Layout.of(toy(block_size=2), PROMPTS, 8, None)
    assert Layout.of(toy(block_size=2), [[1, 2]], 8, None).sizes == [2, 2, 2, 2]
