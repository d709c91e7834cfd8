"""Learn decoding schedules: `dlm distill schedule`.

Learnable Sampler Distillation (LSD and LSD+, arXiv:2509.19962), for networks without a time input.
The teacher is a base policy with one token per forward pass. The student has a budget of forward
passes, and learns how many tokens each of them reveals and the scale of its logits. The network is
not changed.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dlm.decoders.artefact import ModelFacts, ScheduleArtefact, canonical
from dlm.decoders.resample import fractions
from dlm.distill import weights
from dlm.distill.schedule_align import Aligner, Fit
from dlm.distill.schedule_ledger import Ledger, Report, Shape, Trajectory
from dlm.distill.schedule_program import ErrorTable
from dlm.distill.schedule_rollout import Plan, Student, teach
from dlm.distill.schedule_states import BASES, Layout
from dlm.exclusive import alone
from dlm.job import check_length
from dlm.models.model import Model
from dlm.options import boolean, integer, known, number

MOST_REFRESHES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How schedules are learned.

    Raises:
        ValueError: an option is invalid, or has no effect with the others.
    """

    base_policy: str = "low_confidence"  # ranks the positions of teacher and student
    gen_length: int = 256  # tokens
    block_length: int | None = 32  # tokens; None for one block over the whole answer
    refreshes: int = 2  # times the error table is measured again on the student's own states
    scale: bool = True  # whether logit scales are learned
    scale_confidence: bool = True  # whether positions are ranked by scaled logits
    relax: float = 0.0  # share of a block that may differ in the teacher's states; paper: 0.05
    seed: int | None = None  # for the perturbations of `relax`; None stands for 0
    batch_size: int = 16  # rows of a forward pass

    def __post_init__(self) -> None:
        known("base_policy", self.base_policy, BASES)
        integer("gen_length", self.gen_length, least=1)
        if self.block_length is not None:
            integer("block_length", self.block_length, least=1)
        integer("refreshes", self.refreshes, least=0, most=MOST_REFRESHES)
        boolean("scale", self.scale)
        boolean("scale_confidence", self.scale_confidence)
        number("relax", self.relax, least=0, most=1)
        if self.seed is not None:
            integer("seed", self.seed, least=0, most=2**63 - 1)
        integer("batch_size", self.batch_size, least=1)
        if self.relax and not self.scale:
            raise ValueError(f"relax is for the fit of scales, got {self.relax} without scale")
        if self.seed is not None and not self.relax:
            raise ValueError(
                f"seed is for the states that relax tries, got {self.seed} without relax"
            )
        if not (self.scale or self.scale_confidence):
            raise ValueError(
                "scale_confidence is for rankings by scaled logits, got False without scale"
            )


@dataclass(frozen=True, slots=True)
class Origin:
    """Identifies the model, for the artefact, and so that files of another model are refused."""

    id: str | None
    facts: Mapping[str, Any]  # from `dlm.distill.weights`

    @classmethod
    def of(cls, model: Model, id: str | None) -> "Origin":
        """The origin of a loaded model.

        Raises:
            ValueError: a weight is not in memory.
        """
        return cls(id, weights.facts(model))


@dataclass(frozen=True, slots=True)
class Candidate:
    """A plan that may become the schedule."""

    name: str
    plan: Plan
    predicted: float  # expected share of wrong tokens, by the table that produced the plan
    realised: float  # share of tokens, over all prompts, that differ from the teacher's
    fits: tuple[Fit, ...] = ()

    def record(self) -> dict[str, Any]:
        """The candidate as the artefact records it."""
        return {
            "name": self.name,
            "reveal": list(self.plan.counts),
            "scaled": bool(self.fits),
            "predicted": self.predicted,
            "realised": self.realised,
        }


@dataclass(frozen=True, slots=True)
class Distiller:
    """One model, its prompts and the recipe; trajectories are kept in a folder."""

    layout: Layout
    recipe: Recipe
    origin: Origin
    folder: Path
    report: Report

    @classmethod
    def of(
        cls,
        model: Model,
        prompts: Sequence[Sequence[int]],
        recipe: Recipe,
        folder: Path,
        *,
        origin: Origin,
        report: Report = lambda what, done, total: None,
    ) -> "Distiller":
        """Build a distiller, and check that the prompts fit.

        Args:
            model: from `dlm.load`.
            prompts: token ids, from `dlm.prompts.encode_prompts`.
            recipe: how to learn.
            folder: for trajectories; those it already holds are continued.
            origin: identifies the model.
            report: called with the progress of each part.

        Raises:
            ValueError: there is no prompt, or one does not fit the model or the recipe.
        """
        if not prompts:
            raise ValueError("prompts must be one or more, got none")
        spec = model.spec
        check_length(model, max(map(len, prompts)) + recipe.gen_length + len(spec.suffix))
        layout = Layout.of(model, prompts, recipe.gen_length, recipe.block_length)
        made = cls(layout, recipe, origin, folder, report)
        if recipe.relax and not made.flips:
            raise ValueError(
                f"relax must be at least one token of a block of {layout.block_length}, "
                f"got {recipe.relax}"
            )
        return made

    @property
    def flips(self) -> int:
        """Most positions of a block that `relax` may change."""
        return int(self.recipe.relax * self.layout.block_length)

    @property
    def prompts_sha256(self) -> str:
        """SHA-256 of the token ids of all prompts, hex."""
        ids = [list(row) for row in self.layout.prompts]
        return hashlib.sha256(canonical(ids).encode()).hexdigest()

    def forwards(self, budget: int) -> int:
        """Forward passes of each block, for a budget of the whole generation.

        Raises:
            ValueError: the blocks cannot share the budget evenly, or it exceeds their tokens.
        """
        blocks = len(self.layout.sizes)
        integer("budget", budget, least=1)
        if budget % blocks:
            raise ValueError(f"budget must be a multiple of the {blocks} blocks, got {budget}")
        if budget // blocks > self.layout.block_length:
            raise ValueError(
                f"budget must be at most {blocks * self.layout.block_length}, one forward a "
                f"token, got {budget}"
            )
        return budget // blocks

    def facts(self, **more: Any) -> dict[str, Any]:
        """Everything that a file of trajectories depends on."""
        layout = self.layout
        return {
            **self.origin.facts,
            "model": self.origin.id,
            "prompts_sha256": self.prompts_sha256,
            "base_policy": self.recipe.base_policy,
            "gen_length": layout.gen_length,
            "block_length": layout.block_length,
            **more,
        }

    def teachers(self) -> list[Trajectory]:
        """The teacher's trajectories."""
        return self.fill(
            "teacher",
            self.facts(kind="teacher"),
            self.shape([[1] * size for size in self.layout.sizes], measured=True),
            lambda rows: teach(self.layout, self.recipe.base_policy, rows),
        )

    def students(
        self, plan: Plan, teachers: Sequence[Trajectory] | None = None
    ) -> list[Trajectory]:
        """Trajectories of a plan; given the teacher's, with mistakes at every number of masks."""
        scaled = self.recipe.scale_confidence
        student = Student(self.layout, self.recipe.base_policy, plan, scaled)
        kind = "play" if teachers is None else "sweep"
        facts = self.facts(
            kind=kind,
            reveal=list(plan.counts),
            logit_scale=list(plan.scales),
            scale_confidence=scaled,
        )
        digest = hashlib.sha256(canonical(facts).encode()).hexdigest()
        name = f"{kind}-{len(plan.counts)}-{digest[:12]}"

        def work(rows: range) -> list[Trajectory]:
            answers = None if teachers is None else [teachers[row].tokens for row in rows]
            return student.play(rows, None if answers is None else torch.tensor(answers))

        counts = [[count for count, _ in plan.of_block(size)] for size in self.layout.sizes]
        return self.fill(name, facts, self.shape(counts, measured=teachers is not None), work)

    def shape(self, counts: Sequence[Sequence[int]], *, measured: bool) -> Shape:
        """The expected form of trajectories, from the tokens that each forward pass reveals."""
        return Shape.of(counts, self.layout.model.spec.vocab_size, measured=measured)

    def fill(
        self,
        name: str,
        facts: dict[str, Any],
        shape: Shape,
        work: Callable[[range], list[Trajectory]],
    ) -> list[Trajectory]:
        """Trajectories of all prompts; those of an earlier run are read from their file."""
        return Ledger(self.folder / f"{name}.jsonl", facts, shape).fill(
            self.layout.prompts,
            self.recipe.batch_size,
            lambda begin, end: work(range(begin, end)),
            lambda done, total: self.report(name, done, total),
        )

    def learn(self, budget: int) -> ScheduleArtefact:
        """Learn the schedule for a budget of forward passes.

        Candidates are the uniform plan, the best plan by the teacher's table, and the best plan by
        each refreshed table, each with and without scales. The one whose answers differ least from
        the teacher's is chosen.

        Raises:
            ValueError: the budget does not fit, or another run is using the folder.
        """
        with alone(self.folder):
            return self.learn_alone(budget)

    def learn_alone(self, budget: int) -> ScheduleArtefact:
        """`learn`, for callers that keep other runs out of the folder themselves.

        Raises:
            ValueError: the budget does not fit.
        """
        forwards = self.forwards(budget)
        teachers = self.teachers()
        candidates = self.candidates(forwards, teachers)
        best = min(candidates, key=lambda each: (each.realised, not each.fits))
        return self.artefact(budget, best, candidates)

    def candidates(self, forwards: int, teachers: Sequence[Trajectory]) -> list[Candidate]:
        """All plans that are compared."""
        table = self.table(teachers)
        found: dict[tuple[int, ...], Candidate] = {}
        counts, name = table.best(forwards), "teacher"
        swept: ErrorTable | None = None
        for refresh in range(1, self.recipe.refreshes + 1):
            if counts in found:
                break
            plan = Plan.plain(counts)
            students = self.students(plan, teachers)
            found[counts] = self.judge(name, plan, swept or table, students, teachers)
            fresh = self.table(students)
            swept = fresh if swept is None else swept.mixed(fresh)
            counts, name = swept.best(forwards), f"refresh {refresh}"
        last = (counts, name, swept or table)
        for each, label, by in (last, (self.even(forwards), "uniform", table)):
            if each not in found:
                plan = Plan.plain(each)
                found[each] = self.judge(label, plan, by, self.students(plan), teachers)
        plain = list(found.values())
        scaled = [self.scaled(each, teachers) for each in plain] if self.recipe.scale else []
        return plain + scaled

    def even(self, forwards: int) -> tuple[int, ...]:
        """LLaDA's counts: m // N, and one more for the first m mod N forward passes."""
        each, more = divmod(self.layout.block_length, forwards)
        return (each + 1,) * more + (each,) * (forwards - more)

    def table(self, trajectories: Sequence[Trajectory]) -> ErrorTable:
        """The error table of the given trajectories."""
        return ErrorTable.of((each.wrong for each in trajectories), self.layout.sizes)

    def judge(
        self,
        name: str,
        plan: Plan,
        table: ErrorTable,
        students: Sequence[Trajectory],
        teachers: Sequence[Trajectory],
    ) -> Candidate:
        """A candidate from a plan and its predicted and realised errors."""
        predicted = table.predicted(plan.counts) / self.layout.block_length
        return Candidate(name, plan, predicted, differing(students, teachers))

    def scaled(self, plain: Candidate, teachers: Sequence[Trajectory]) -> Candidate:
        """The same plan with the scales that fit its states."""
        recipe = self.recipe
        students = self.students(plain.plan)
        aligner = Aligner(
            self.layout, students, teachers, self.flips, recipe.seed or 0, recipe.batch_size
        )
        label = f"scales {len(plain.plan.counts)} {plain.name}"
        fits = aligner.fit(plain.plan, lambda done, total: self.report(label, done, total))
        plan = replace(plain.plan, scales=tuple(fit.scale for fit in fits))
        realised = differing(self.students(plan), teachers)
        return replace(plain, plan=plan, realised=realised, fits=tuple(fits))

    def artefact(
        self, budget: int, best: Candidate, candidates: Sequence[Candidate]
    ) -> ScheduleArtefact:
        """The artefact of the best plan."""
        layout, recipe, spec = self.layout, self.recipe, self.layout.model.spec
        whole = recipe.block_length is None and len(layout.sizes) == 1
        even = self.even(len(best.plan.counts))
        uniform = next(each for each in candidates if each.plan == Plan.plain(even))
        training = {
            "teacher_steps": layout.gen_length,
            "prompts_sha256": self.prompts_sha256,
            "n_prompts": len(layout.prompts),
            "weights": self.origin.facts["weights"],
            "seed": recipe.seed or 0,
            "relax": recipe.relax,
            "refreshes": recipe.refreshes,
            "chosen": best.name,
            "loss": [fit.after for fit in best.fits],
            "loss_unscaled": [fit.before for fit in best.fits],
            "rejected": [k for k, fit in enumerate(best.fits) if fit.rejected],
            "error": {
                "predicted": best.predicted,
                "realised": best.realised,
                "uniform": uniform.realised,
            },
            "candidates": [each.record() for each in candidates],
        }
        return ScheduleArtefact(
            kind="lsd+",
            model=ModelFacts(
                vocab=spec.vocab_size,
                mask_id=spec.mask_id,
                id=self.origin.id,
            ),
            base_policy=recipe.base_policy,
            gen_length=layout.gen_length,
            block_length=layout.block_length,
            steps=budget,
            scope="generation" if whole else "block",
            reveal=best.plan.counts,
            cum_fraction=fractions(best.plan.counts),
            logit_scale=best.plan.scales,
            scale_confidence=recipe.scale_confidence,
            training=json.dumps(training),
        )


def differing(students: Sequence[Trajectory], teachers: Sequence[Trajectory]) -> float:
    """Share of tokens that differ from the teacher's."""
    pairs = [
        told != wanted
        for student, teacher in zip(students, teachers, strict=True)
        for told, wanted in zip(student.tokens, teacher.tokens, strict=True)
    ]
    return sum(pairs) / len(pairs)
