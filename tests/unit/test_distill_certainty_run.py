"""Certainty-forcing distillation: a run that learns, stops and goes on."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import dlm
from dlm.distill.certainty_batches import Batches
from dlm.distill.certainty_recipe import Recipe
from dlm.distill.certainty_run import STATE, Trainer, train
from dlm.distill.certainty_targets import Target
from dlm.models.adapter import CONFIG, WEIGHTS
from dlm.models.model import Model
from dlm.training.loop import Progress
from dlm.training.seeds import LARGEST_SEED, noise_seed

FAMILIES = Path(__file__).parent.parent / "golden" / "families"
RECIPE = Recipe(
    steps=4, batch_size=2, accumulate=2, block_length=3, rank=4, alpha=8.0, learning_rate=1e-2
)
IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Iterator[None]:
    """Accelerate keeps the first precision of a process for good."""
    from accelerate.state import AcceleratorState  # type: ignore[import-untyped]

    yield
    AcceleratorState._reset_state(True)


def targets_of(model: Model, count: int = 5) -> list[Target]:
    """What the model itself says, of prompts of unlike lengths."""
    prompts = [[1 + row % 3, 2, *range(3, 3 + row % 3)] for row in range(count)]
    out = dlm.generate(model, prompts, gen_length=7, block_length=3)
    return [Target(p, r, None) for p, r in zip(prompts, out.tokens, strict=True)]


def load(folder: Path) -> tuple[Model, list[Target]]:
    model = dlm.load(folder, dtype="float32")
    return model, targets_of(model)


def stop_after(step: int) -> Any:
    def report(progress: Progress) -> None:
        if progress.step == step:
            raise KeyboardInterrupt

    return report


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", ["llada", "dream", "sdar"])
def test_training_makes_a_model_certain_of_its_own_tokens(
    name: str, golden_folder: Path, tmp_path: Path
) -> None:
    folder = golden_folder if name == "llada" else FAMILIES / name
    model, targets = load(folder)
    before = dlm.generate(model, [t.prompt for t in targets], gen_length=7, block_length=None,
                          decoder="entropy_threshold")  # fmt: skip
    losses: list[float] = []
    recipe = replace(RECIPE, steps=60, block_length=None)
    train(recipe, model, targets, tmp_path, report=lambda p: losses.append(p.loss))
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    found = dlm.load(folder, dtype="float32", adapter=tmp_path)
    assert torch.equal(found.raw_logits(IDS), model.raw_logits(IDS))
    after = dlm.generate(found, [t.prompt for t in targets], gen_length=7, block_length=None,
                         decoder="entropy_threshold")  # fmt: skip
    assert sum(after.forwards) < 0.8 * sum(before.forwards)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_an_interrupted_run_resumes_to_the_same_bytes(
    checkpointing: bool, golden_folder: Path, tmp_path: Path
) -> None:
    recipe = replace(RECIPE, schedule="cosine", warmup=0.3, checkpointing=checkpointing)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(recipe, *load(golden_folder), whole)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, *load(golden_folder), broken, report=stop_after(3))
    assert (broken / WEIGHTS).read_bytes() != (whole / WEIGHTS).read_bytes()
    steps: list[int] = []
    train(recipe, *load(golden_folder), broken, resume=True, report=lambda p: steps.append(p.step))
    assert steps == [4]
    for file in (CONFIG, WEIGHTS):
        assert (broken / file).read_bytes() == (whole / file).read_bytes()


def test_checkpointing_changes_nothing(golden_folder: Path, tmp_path: Path) -> None:
    for name, checkpointing in (("kept", False), ("again", True)):
        recipe = replace(RECIPE, checkpointing=checkpointing)
        train(recipe, *load(golden_folder), tmp_path / name)
    again, kept = ((tmp_path / name / WEIGHTS).read_bytes() for name in ("again", "kept"))
    assert again == kept


def test_accumulated_forwards_are_one_update(golden_folder: Path, tmp_path: Path) -> None:
    """The gradient of an update is the mean of those of its forwards."""
    model, targets = load(golden_folder)
    recipe = replace(RECIPE, steps=1, accumulate=3, clip=1e9)
    trainer = Trainer(model, targets, recipe, tmp_path, None)
    expected = [torch.zeros_like(weight) for weight in trainer.weights]
    for turn in range(3):
        total = trainer.loss(trainer.batches[turn]).total
        parts = torch.autograd.grad(total, trainer.weights)
        expected = [sum_ + part / 3 for sum_, part in zip(expected, parts, strict=True)]
    found: list[torch.Tensor] = []
    step = trainer.optimizer.optimizer.step

    def spy(*args: Any, **options: Any) -> Any:
        found.extend(weight.grad.clone() for weight in trainer.weights)
        return step(*args, **options)

    trainer.optimizer.optimizer.step = spy
    trainer.update()
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_bfloat16_autocasts_and_keeps_the_adapter_wide(golden_folder: Path, tmp_path: Path) -> None:
    losses: list[float] = []
    for precision in ("float32", "bfloat16"):
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(True)
        model, targets = load(golden_folder)
        trainer = Trainer(model, targets, replace(RECIPE, precision=precision), tmp_path, None)
        losses.append(trainer.update().loss)
        assert {weight.dtype for weight in trainer.weights} == {torch.float32}
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


def test_only_the_adapter_is_trained(golden_folder: Path, tmp_path: Path) -> None:
    model, targets = load(golden_folder)
    before = {n: w.clone() for n, w in model.network.state_dict().items()}
    train(RECIPE, model, targets, tmp_path)
    after = {n.replace(".base_layer", ""): w for n, w in model.network.state_dict().items()}
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())
    assert sum("lora_" in name for name in after) == len(after) - len(before)


def test_every_row_is_seen_once_an_epoch_and_masks_are_fresh(golden: Model) -> None:
    targets = targets_of(golden, 6)
    batches = Batches(golden.spec, targets, RECIPE)
    seen = [batches.target(place) for place in range(12)]
    assert sorted(map(repr, seen[:6])) == sorted(map(repr, targets))
    assert seen[:6] != seen[6:]
    one, again, other = batches[3], batches[3], batches[6]
    assert torch.equal(one.tokens, again.tokens)
    assert not torch.equal(one.masked, other.masked)
    assert one.valid is not None
    assert not one.masked[~one.valid].any()
    assert (one.tokens[one.masked] == golden.spec.mask_id).all()
    assert one.second.tolist() == sorted(one.second.tolist())
    lone = Batches(golden.spec, targets[:1], replace(RECIPE, block_length=None))
    assert len({str(lone[forward].masked.tolist()) for forward in range(4)}) > 1


def test_a_run_is_neither_overwritten_nor_mixed_up(golden_folder: Path, tmp_path: Path) -> None:
    model, targets = load(golden_folder)
    with pytest.raises(ValueError, match="holds no run to resume"):
        train(RECIPE, model, targets, tmp_path, resume=True)
    train(RECIPE, model, targets, tmp_path)
    assert (tmp_path / STATE).exists()
    with pytest.raises(ValueError, match="holds a run already"):
        train(RECIPE, *load(golden_folder), tmp_path)
    with pytest.raises(ValueError, match=r"these differ: \['steps'\]"):
        train(replace(RECIPE, steps=9), *load(golden_folder), tmp_path, resume=True)
    with pytest.raises(ValueError, match=r"these differ: \['targets'\]"):
        train(RECIPE, load(golden_folder)[0], targets[1:], tmp_path, resume=True)


def test_an_adapter_that_a_kill_took_is_written_by_resuming(
    golden_folder: Path, tmp_path: Path
) -> None:
    train(RECIPE, *load(golden_folder), tmp_path)
    whole = {name: (tmp_path / name).read_bytes() for name in (CONFIG, WEIGHTS)}
    for name in whole:
        (tmp_path / name).unlink()
    train(RECIPE, *load(golden_folder), tmp_path, resume=True)
    assert {name: (tmp_path / name).read_bytes() for name in whole} == whole


def test_a_run_of_another_model_is_refused(golden_folder: Path, tmp_path: Path) -> None:
    model, targets = load(golden_folder)
    train(RECIPE, model, targets, tmp_path)
    narrow = dlm.load(golden_folder, dtype="bfloat16")
    with pytest.raises(ValueError, match=r"these differ: \['dtype', 'weights'\]"):
        train(RECIPE, narrow, targets, tmp_path, resume=True)
    moved = dlm.load(golden_folder, dtype="float32")
    with torch.no_grad():
        list(moved.network.parameters())[-1].view(-1)[-1] += 1
    with pytest.raises(ValueError, match=r"these differ: \['weights'\]"):
        train(RECIPE, moved, targets, tmp_path, resume=True)
    plain = dlm.load(golden_folder, dtype="float32")
    other = replace(plain, spec=replace(plain.spec, family="dream", block_size=6))
    with pytest.raises(ValueError, match=r"these differ: \['block_size', 'family'\]"):
        train(RECIPE, other, targets, tmp_path, resume=True)


@pytest.mark.parametrize("kind", ["empty", "garbage", "torn", "list", "lacking"])
def test_a_damaged_checkpoint_is_named(kind: str, golden_folder: Path, tmp_path: Path) -> None:
    train(RECIPE, *load(golden_folder), tmp_path)
    path = tmp_path / STATE
    whole = path.read_bytes()
    path.write_bytes({"empty": b"", "garbage": b"no state"}.get(kind, whole[: len(whole) // 2]))
    if kind in ("list", "lacking"):
        torch.save([1] if kind == "list" else {"step": 4}, path)
    with pytest.raises(ValueError, match=f"{STATE} is damaged: delete it"):
        train(RECIPE, *load(golden_folder), tmp_path, resume=True)


@pytest.mark.parametrize("length", [8, 3, None])
def test_block_causal_rows_learn_the_blocks_that_decoding_fills(
    golden: Model, length: int | None
) -> None:
    spec = replace(golden.spec, block_size=4)
    targets = [Target([1, 2, 3], list(range(4, 15)), None)]
    recipe = replace(RECIPE, block_length=length, batch_size=1)
    batches = Batches(spec, targets, recipe)
    widest = 2 if length == 3 else 4
    found = set()
    for forward in range(40):
        batch = batches[forward]
        places = batch.masked.nonzero()[:, 1]
        assert len(set((places // widest).tolist())) == 1
        found.add(int(places[0]) // widest)
    assert len(found) == -(-14 // widest) - 3 // widest


def test_the_largest_seed_numbers_every_forward() -> None:
    last = noise_seed(LARGEST_SEED, 4 * 10**18)
    assert last < 2**63
    torch.Generator().manual_seed(last)


@pytest.mark.parametrize(
    "target", [Target([], [1], None), Target([1], [], None), Target([1], [9999], None)]
)
def test_targets_that_are_no_rows_are_refused(
    target: Target, golden_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="target 0 must have a prompt and a response"):
        train(RECIPE, dlm.load(golden_folder), [target], tmp_path)
    with pytest.raises(ValueError, match="at least one target, got none"):
        train(RECIPE, dlm.load(golden_folder), [], tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be an int >= 1, got 0"),
        ({"seed": 99999999999999999999}, "seed must be an int <= 4398046511104, got 9999999999"),
        ({"block_length": 0}, "block_length must be an int >= 1, got 0"),
        ({"ratio": 1.5}, r"ratio must be a finite number in \[0, 1\], got 1.5"),
        ({"temperature": 0.0}, "temperature must be > 0, got 0"),
        ({"weight": -1.0}, "weight must be a finite number >= 0, got -1.0"),
        ({"schedule": "linear"}, "unknown schedule 'linear'"),
        ({"precision": "float16"}, "unknown precision 'float16'"),
        ({"checkpointing": 1}, "checkpointing must be True or False, got 1"),
    ],
)
def test_bad_recipes(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe(**options)


def test_layers_have_to_be_there(golden_folder: Path, tmp_path: Path) -> None:
    model, targets = load(golden_folder)
    with pytest.raises(ValueError, match=r"layers must be among .*q_proj.*, got attn_out"):
        train(replace(RECIPE, layers=("attn_out",)), model, targets, tmp_path)


def test_rate_warms_up_and_stays_or_falls() -> None:
    recipe = Recipe(steps=100, warmup=0.1, learning_rate=1.0)
    assert [recipe.rate(0), recipe.rate(9), recipe.rate(99)] == [0.1, 1.0, 1.0]
    falling = replace(recipe, schedule="cosine")
    assert falling.rate(10) == 1.0
    assert falling.rate(55) == pytest.approx(0.5)
    assert 0 < falling.rate(99) < 1e-3
