"""Decoders are pure: they neither wait for a device nor leave it, nor change what they read."""

from dataclasses import fields, replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dlm.decoders import DECODERS, make
from dlm.decoders.artefact import ScheduleArtefact
from dlm.progress import select_rows
from dlm.traits import Traits
from dlm.tree import equal, mapped
from dlm.types import AnyDecoder, Decision, Facts, StepView

BATCH, WIDTH, BLOCK, VOCAB, TOP, BRANCHES = 3, 6, 2, 8, 5, 8


def variants() -> list[tuple[str, dict[str, Any]]]:
    """Every decoder, and those options that take another path through it."""
    more: list[tuple[str, dict[str, Any]]] = [
        ("saber", {"preset": "paper"}),
        ("saber", {"preset": "safe"}),
        *(("remdm", {"variant": variant}) for variant in ("cap", "rescale", "conf", "loop")),
        ("remdm", {"variant": "llada_remdm"}),
        *(("dream", {"alg": alg}) for alg in ("origin", "maskgit_plus", "topk_margin")),
        *(("first_hitting", {"alpha": alpha}) for alpha in ("cosine", "log_linear")),
        ("first_hitting", {"order": 2}),
        ("ancestral", {"cached": False}),
        ("hierarchical", {"remask": True}),
        ("block_refinement", {"editing_threshold": 0.5}),
        ("credit", {"adaptive": True}),
        ("pc_sampler", {"weight": "linear"}),
        ("pc_sampler", {"frequencies": [0.125] * VOCAB, "position_origin": "generation"}),
        ("entropy_bound", {"order": "confidence"}),
        ("prophet", {"answer_start": 2}),
        ("multi_block", {"variant": "dream"}),
        ("lopa", {"score": "entropy", "branches": BRANCHES}),
        ("lopa", {"branches": 1}),
        ("info_gain", {"branches": 1}),
        ("ssd", {"branches": 1}),
        ("ssd", {"score": "position"}),
        ("info_gain", {"variant": "lookum", "branches": BRANCHES}),
    ]
    return [*((name, {}) for name in DECODERS), *more]


VARIANTS = pytest.mark.parametrize(("name", "options"), variants(), ids=str)
BRANCHED = pytest.mark.parametrize(
    ("name", "options"),
    [each for each in variants() if Traits.of(make(each[0], **each[1])).branches > 1],
    ids=str,
)


def facts(device: torch.device) -> Facts:
    table = torch.full((VOCAB,), 1 / VOCAB, device=device)
    return Facts(VOCAB, VOCAB - 1, device, 1, WIDTH, lambda: table)


def bound(name: str, options: dict[str, Any], device: torch.device) -> AnyDecoder:
    decoder: Any = make(name, **options)
    ready: AnyDecoder = decoder.bind(facts(device))
    return ready


def view(device: torch.device, step: int = 0, limit: int = 0) -> StepView:
    """Any view, with every field; on the meta device there is nothing to read in it."""
    generator = torch.Generator().manual_seed(step)

    def noise(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator).to(device)

    def whole(*shape: int, most: int = VOCAB - 1) -> Tensor:
        return torch.randint(most, shape, generator=generator).to(device)

    grid = (BATCH, WIDTH)
    masked = (whole(*grid) < 5) | (torch.arange(WIDTH) == 2).to(device)
    row = torch.full((BATCH,), 1, device=device)
    return StepView(
        tokens=whole(*grid),
        masked=masked,
        sampled=whole(*grid),
        positions=torch.arange(WIDTH, device=device).expand(grid) + 1,
        block_start=row,
        block_length=BLOCK,
        row_start=row,
        row_stop=row + WIDTH,
        step=row * step,
        limit=row * limit,
        quota=row,
        editable=~masked,
        confidence=noise(*grid),
        margin=noise(*grid),
        entropy=noise(*grid),
        token_probability=noise(*grid),
        leave_one_out=noise(*grid),
        top_tokens=whole(*grid, TOP),
        top_probabilities=noise(*grid, TOP) / TOP,
        uniform=noise(*grid),
        position_noise=noise(*grid),
        branch_noise=noise(BATCH, BRANCHES, WIDTH),
        logits=noise(*grid, VOCAB),
    )


def decide(decoder: AnyDecoder, state: Any, seen: StepView) -> tuple[Any, Decision]:
    """What the runtime calls at a forward."""
    adjust = Traits.of(decoder).adjust
    if adjust is not None:
        state, _ = adjust(state, seen)
    return decoder.step(state, seen)


def start(decoder: AnyDecoder, device: torch.device) -> Any:
    with device:
        return decoder.init_state(BATCH, WIDTH)


@VARIANTS
def test_neither_syncs_nor_leaves_the_device(name: str, options: dict[str, Any]) -> None:
    """Meta tensors have no values: reading one, or mixing in a CPU tensor, raises."""
    meta = torch.device("meta")
    decoder = bound(name, options, meta)
    state = start(decoder, meta)
    for step, limit in product((0, 1), (0, 4)):
        state, decision = decide(decoder, state, view(meta, step, limit))
        for field in fields(decision):
            value = getattr(decision, field.name)
            assert value is None or value.device.type == "meta"


def test_the_meta_device_catches_a_sync() -> None:
    with pytest.raises((RuntimeError, NotImplementedError)):
        bool(view(torch.device("meta")).masked.any())


@VARIANTS
def test_changes_nothing_it_reads(name: str, options: dict[str, Any]) -> None:
    cpu = torch.device("cpu")
    decoder = bound(name, options, cpu)
    state = start(decoder, cpu)
    for step in range(3):
        seen = view(cpu, step)
        copy = mapped(Tensor.clone, seen)
        first, decision = decide(decoder, state, seen)
        again = decide(decoder, state, seen)[1]
        assert equal(seen, copy)
        for f in fields(decision):
            once, twice = getattr(decision, f.name), getattr(again, f.name)
            assert (once is None and twice is None) or torch.equal(once, twice)
        state = first


@VARIANTS
def test_rows_of_state_are_rows_of_the_batch(name: str, options: dict[str, Any]) -> None:
    """A step on some rows, with their rows of the state, decides what it decides on all."""
    cpu = torch.device("cpu")
    decoder = bound(name, options, cpu)
    index = torch.tensor([2, 0])
    state = start(decoder, cpu)
    part = select_rows(state, index)
    for step in range(3):
        seen = view(cpu, step)
        some = select_rows(seen, index)
        state, decision = decide(decoder, state, seen)
        part, fewer = decide(decoder, part, some)
        for f in fields(decision):
            whole, few = getattr(decision, f.name), getattr(fewer, f.name)
            assert (whole is None and few is None) or torch.equal(whole[index], few)


def of_branches(seen: StepView, branches: int) -> StepView:
    """The same once for each branch, all but alike: some see fewer masks, and other chances."""
    each = torch.arange(branches, device=seen.masked.device)

    def spread(value: Tensor) -> Tensor:
        return value.unsqueeze(1).expand(-1, branches, *[-1] * (value.dim() - 1)).clone()

    made: StepView = mapped(spread, seen)
    made.masked.logical_and_(made.positions > each[:, None] % WIDTH)
    for name in ("confidence", "entropy", "margin"):
        value = made.want(name)
        value.copy_(value.roll(1, -1) / (each[:, None] + 1))
    return made


@BRANCHED
def test_choosing_neither_syncs_nor_leaves_the_device(name: str, options: dict[str, Any]) -> None:
    meta = torch.device("meta")
    decoder: Any = bound(name, options, meta)
    seen = of_branches(view(meta), decoder.branches)
    assert decoder.choose(start(decoder, meta), seen).device.type == "meta"


@BRANCHED
def test_choosing_changes_nothing_and_minds_its_row(name: str, options: dict[str, Any]) -> None:
    cpu, index = torch.device("cpu"), torch.tensor([2, 0])
    decoder: Any = bound(name, options, cpu)
    state, _ = decide(decoder, start(decoder, cpu), view(cpu))
    chosen = set()
    for step in range(8):
        seen = of_branches(view(cpu, step), decoder.branches)
        copy = select_rows(seen, torch.arange(BATCH))
        winner = decoder.choose(state, seen)
        assert equal(seen, copy)
        few = decoder.choose(select_rows(state, index), select_rows(seen, index))
        assert torch.equal(winner[index], few)
        chosen |= set(winner.tolist())
    if (name, options) not in (("lopa", {}), ("ssd", {})):  # whose first branch is hard to beat
        assert len(chosen) > 1


def test_a_schedule_neither_syncs_nor_leaves_the_device(tmp_path: Path) -> None:
    path = tmp_path / "schedule.json"
    artefact = ScheduleArtefact.identity(WIDTH, VOCAB, VOCAB - 1, steps=3)
    replace(artefact, logit_scale=(1.5, 1.0, 0.75)).save(path)
    test_neither_syncs_nor_leaves_the_device("schedule", {"path": path})
    test_rows_of_state_are_rows_of_the_batch("schedule", {"path": path})
