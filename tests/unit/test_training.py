"""The objective, the batches and a run that can be interrupted."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import dlm
from dlm.data import Example
from dlm.training.batches import Batches, collate
from dlm.training.loop import STATE, Progress, Recipe, Trainer, corrupt
from dlm.training.loss import (
    mask_counts,
    mask_exactly,
    masked_diffusion_loss,
    stratified_levels,
)
from dlm.training.optimizer import OPTIMIZERS, optimizers
from dlm.training.run import Shape, new_network, train

SHAPE = Shape(width=32, layers=1, heads=2, mlp_width=64)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(Path(dlm.__file__).parent / "assets" / "tiny")


@given(st.integers(1, 9), st.integers(0, 2**31))
def test_masks_exactly_k_of_the_response(length: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    maskable = torch.rand(6, 12, generator=generator) < 0.5
    maskable[:, length] = True
    levels = stratified_levels(6, torch.rand((), generator=generator))
    count = mask_counts(maskable.sum(-1), levels)
    masked = mask_exactly(maskable, count, torch.rand(6, 12, generator=generator))
    assert (masked & ~maskable).sum() == 0
    assert masked.sum(-1).tolist() == count.tolist()
    assert count.min() >= 1


def test_counts_are_uniform() -> None:
    levels = stratified_levels(700, torch.tensor(0.3, dtype=torch.float64))
    counts = mask_counts(torch.full((700,), 7), levels)
    found = torch.bincount(counts).tolist()
    assert found[0] == 0
    assert sum(found) == 700
    assert all(abs(count - 100) <= 1 for count in found[1:])


def test_loss_is_the_mean_over_masked_positions_of_each_row() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(2, 5, 4), torch.randint(0, 4, (2, 5))
    masked = torch.tensor([[1, 0, 0, 0, 0], [0, 1, 1, 1, 1]], dtype=torch.bool)
    found = masked_diffusion_loss(logits[masked], targets, masked)
    surprise = -logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    expected = (surprise[0, 0] + surprise[1, 1:].mean()) / 2
    torch.testing.assert_close(found, expected)


def test_responses_end_in_one_end_of_turn_and_learned_padding() -> None:
    batch = collate("t", [[1, 2], [3]], [[7], [8, 8, 8]], eot_id=9, eos_id=0, extra=1)
    assert batch.tokens.tolist() == [[1, 2, 7, 9, 0, 0], [3, 8, 8, 8, 9, 0]]
    assert batch.maskable.tolist() == [[False] * 2 + [True] * 4, [False] + [True] * 5]


def test_batches_are_a_function_of_seed_and_step(tokenizer: Any) -> None:
    def batches(seed: int) -> Batches:
        return Batches(tokenizer, {"sudoku": 1.0}, tokens_per_batch=500, max_extra=4, seed=seed)

    assert torch.equal(batches(1)[3].tokens, batches(1)[3].tokens)
    assert not torch.equal(batches(1)[3].tokens, batches(1)[4].tokens)
    assert not torch.equal(batches(1)[3].tokens, batches(2)[3].tokens)


def test_prompts_are_never_corrupted(tokenizer: Any) -> None:
    batch = Batches(tokenizer, {"functions": 1.0}, tokens_per_batch=900, max_extra=4, seed=0)[0]
    tokens, masked = corrupt(batch, tokenizer.mask_token_id, 5)
    assert torch.equal(tokens[~batch.maskable], batch.tokens[~batch.maskable])
    assert (tokens == tokenizer.mask_token_id).equal(masked)


def test_own_examples_leave_out_what_is_held_out(tokenizer: Any) -> None:
    examples = [Example("file", "one", "1"), Example("file", "two", "2")]
    source = Batches(
        tokenizer, {"file": 1.0}, tokens_per_batch=200, max_extra=0, seed=0,
        held_out=frozenset({"two"}), examples=examples,
    )  # fmt: skip
    text = tokenizer.batch_decode(source[0].tokens)
    assert all("one" in row and "two" not in row for row in text)
    with pytest.raises(ValueError, match="task 'file' needs examples that are not held out"):
        Batches(
            tokenizer, {"file": 1.0}, tokens_per_batch=200, max_extra=0, seed=0,
            held_out=frozenset({"one", "two"}), examples=examples,
        )  # fmt: skip


RECIPE = Recipe(tasks={"sudoku": 1.0}, steps=6, tokens_per_batch=400, warmup=2)


def run(
    tokenizer: Any,
    out: Path,
    stop_after: int | None = None,
    recipe: Recipe = RECIPE,
    **options: Any,
) -> list[float]:
    """Train; optionally die after some steps."""
    losses: list[float] = []

    def report(progress: Progress) -> None:
        losses.append(progress.loss)
        if len(losses) == stop_after:
            raise KeyboardInterrupt

    train(recipe, new_network(SHAPE, tokenizer, 0), tokenizer, out, report=report, **options)
    return losses


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_an_interrupted_run_resumes_to_the_same_weights(
    tokenizer: Any, tmp_path: Path, optimizer: str
) -> None:
    recipe = replace(RECIPE, optimizer=optimizer)
    whole = run(tokenizer, tmp_path / "whole", recipe=recipe)
    with pytest.raises(KeyboardInterrupt):
        run(tokenizer, tmp_path / "halves", stop_after=3, recipe=recipe)
    assert dlm.load(tmp_path / "halves").spec.mask_id == tokenizer.mask_token_id
    rest = run(tokenizer, tmp_path / "halves", resume=True, recipe=recipe)
    assert rest == whole[3:]
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "halves")]
    assert weights[0] == weights[1]
    model = dlm.load(tmp_path / "whole")
    assert model.tokenizer is not None
    assert dlm.generate(model, "Sudoku: 12", gen_length=4).texts is not None


@pytest.mark.parametrize("saved", [False, True])
def test_weights_of_half_a_step_are_not_written(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saved: bool
) -> None:
    """A second Ctrl-C does not wait for the end of a step: the last checkpoint stays, if any."""
    recipe, out = replace(RECIPE, optimizer="muon"), tmp_path / "run"
    if saved:
        with pytest.raises(KeyboardInterrupt):
            run(tokenizer, out, stop_after=2, recipe=recipe)
    before = (out / "model.safetensors").read_bytes() if saved else None

    def interrupted(*given: Any, **named: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.optim.AdamW, "step", interrupted)  # Muon has stepped by then
    network = new_network(SHAPE, tokenizer, 0)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, network, tokenizer, out, resume=saved)
    assert not network.training
    assert (out / "model.safetensors").exists() == saved
    assert before is None or (out / "model.safetensors").read_bytes() == before


def test_a_run_is_not_overwritten_nor_mixed_up(tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no run to resume"):
        run(tokenizer, tmp_path, resume=True)
    run(tokenizer, tmp_path)
    with pytest.raises(ValueError, match="holds a run already"):
        run(tokenizer, tmp_path)
    (tmp_path / STATE).unlink()
    before = (tmp_path / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="holds a model already: choose another folder"):
        run(tokenizer, tmp_path)  # as what was made elsewhere
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_a_run_goes_on_as_what_it_was(tokenizer: Any, tmp_path: Path) -> None:
    run(tokenizer, tmp_path)
    other = Recipe(tasks={"sudoku": 1.0}, steps=7, tokens_per_batch=400, warmup=2)
    with pytest.raises(ValueError, match=r"another run; these differ: \['steps'\]"):
        train(other, new_network(SHAPE, tokenizer, 0), tokenizer, tmp_path, resume=True)
    wider = new_network(Shape(width=64, layers=1, heads=2, mlp_width=64), tokenizer, 0)
    with pytest.raises(ValueError, match=r"another run; these differ: \['network.d_model'\]"):
        train(RECIPE, wider, tokenizer, tmp_path, resume=True)
    assert (tmp_path / STATE).exists()


def test_learning_lowers_the_loss(tokenizer: Any, tmp_path: Path) -> None:
    recipe = Recipe(tasks={"sudoku": 1.0}, steps=40, tokens_per_batch=800, warmup=5)
    losses: list[float] = []
    network = new_network(SHAPE, tokenizer, 0)
    train(recipe, network, tokenizer, tmp_path, report=lambda p: losses.append(p.loss))
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])


def test_a_diverging_run_says_so(tokenizer: Any, tmp_path: Path) -> None:
    network = new_network(SHAPE, tokenizer, 0)
    with torch.no_grad():
        network.lm_head.weight.fill_(torch.inf)
    source = Batches(tokenizer, {"sudoku": 1.0}, tokens_per_batch=200, max_extra=0, seed=0)
    trainer = Trainer(network, source, RECIPE, mask_id=tokenizer.mask_token_id, out=tmp_path)
    with pytest.raises(FloatingPointError, match="at step 0: lower learning_rate"):
        trainer.update()


def break_down(tokenizer: Any, out: Path, value: float, steps: int, **options: int) -> None:
    """Train with weights that the second update broke."""
    recipe = Recipe(tasks={"sudoku": 1.0}, steps=steps, tokens_per_batch=400, warmup=0)
    network = new_network(SHAPE, tokenizer, 0)
    source = Batches(tokenizer, {"sudoku": 1.0}, tokens_per_batch=200, max_extra=0, seed=0)
    trainer = Trainer(network, source, recipe, mask_id=tokenizer.mask_token_id, out=out)

    def break_it(progress: Progress) -> None:
        if progress.step == 2:
            with torch.no_grad():
                network.lm_head.weight[3, 0] = value

    trainer.run(break_it, **options)


def test_an_error_leaves_the_last_checkpoint(tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError):
        break_down(tokenizer, tmp_path, torch.inf, steps=4, save_every=1)
    assert torch.load(tmp_path / STATE, weights_only=True)["step"] == 1


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_weights_that_the_last_update_broke_are_not_written(
    value: float, tokenizer: Any, tmp_path: Path
) -> None:
    """No loss follows that would tell."""
    with pytest.raises(FloatingPointError, match=r"step 2: lower learning_rate, which was \d"):
        break_down(tokenizer, tmp_path, value, steps=2)
    assert not (tmp_path / STATE).exists()


def test_training_goes_on_from_a_loaded_model(tokenizer: Any, tmp_path: Path) -> None:
    run(tokenizer, tmp_path / "first")
    first = dlm.load(tmp_path / "first")
    losses: list[float] = []
    train(RECIPE, first.network, tokenizer, tmp_path / "second",
          report=lambda p: losses.append(p.loss))  # fmt: skip
    fresh = run(tokenizer, tmp_path / "fresh")
    assert losses[0] < fresh[0]


@pytest.mark.parametrize("name", ["width", "layers", "heads", "mlp_width", "max_length"])
def test_bad_shapes(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be an int >= 1, got 0"):
        Shape(**{name: 0})


def test_a_tokenizer_without_end_of_turn_is_refused() -> None:
    from dlm.training.batches import token_id

    class Bare:
        def get_vocab(self) -> dict[str, int]:
            return {"a": 0}

    with pytest.raises(ValueError, match=r"must have a token '<\|eot_id\|>'"):
        token_id(Bare(), "<|eot_id|>")  # type: ignore[arg-type]


def test_muon_updates_the_matrices_within_layers(tokenizer: Any) -> None:
    network = new_network(SHAPE, tokenizer, 0)
    muon, rest = optimizers(network, "muon", learning_rate=0.01, weight_decay=0.5)
    within = muon.param_groups[0]["params"]
    layers = [each for each in network.model.layers.parameters() if each.ndim == 2]
    assert {id(each) for each in within} == {id(each) for each in layers}
    matrices, vectors = rest.param_groups
    assert [id(each) for each in matrices["params"]] == [id(network.model.embed_tokens.weight)]
    decays = [muon.param_groups[0]["weight_decay"], matrices["weight_decay"]]
    assert (decays, vectors["weight_decay"]) == ([0.5, 0.5], 0.0)
    whole = [each for part in (within, matrices["params"], vectors["params"]) for each in part]
    assert len({id(each) for each in whole}) == len(whole) == len(list(network.parameters()))
    (alone,) = optimizers(network, "adamw", learning_rate=0.01, weight_decay=0.5)
    assert sum(len(group["params"]) for group in alone.param_groups) == len(whole)


def test_muon_takes_steps_of_a_spectrum_that_is_flat(tokenizer: Any) -> None:
    network = new_network(SHAPE, tokenizer, 0)
    muon, _ = optimizers(network, "muon", learning_rate=0.01, weight_decay=0.0)
    weight = muon.param_groups[0]["params"][0]
    assert weight.shape == (32, 32)
    before = weight.detach().clone()
    left, _, right = torch.linalg.svd(torch.randn(32, 32), full_matrices=False)
    weight.grad = left @ torch.linspace(1.0, 5.0, 32).diag() @ right
    muon.step()
    step = torch.linalg.svdvals(before - weight.detach()) / (0.01 * 0.2 * 32**0.5)
    assert float(step.min()) > 0.6
    assert float(step.max()) < 1.3


def test_rate_warms_up_and_decays() -> None:
    recipe = Recipe(tasks={"sudoku": 1.0}, steps=100, warmup=10, learning_rate=1.0)
    rates: Sequence[float] = [recipe.rate(step) for step in range(100)]
    assert rates[0] == 0.1
    assert max(rates) == rates[9] == 1.0
    assert rates[-1] == pytest.approx(0.01, abs=1e-3)
    assert all(a >= b for a, b in pairwise(rates[10:]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be an int >= 1, got 0"),
        ({"steps": 2.5}, "steps must be an int >= 1, got 2.5"),
        ({"learning_rate": float("nan")}, "learning_rate must be a finite number >= 0"),
        ({"learning_rate": "x"}, "learning_rate must be a finite number >= 0, got 'x'"),
        ({"optimizer": "muno"}, "unknown optimizer 'muno'. Did you mean 'muon'"),
        ({"seed": 2**42 + 1}, "seed must be an int <= 4398046511104, got 4398046511105"),
        ({"seed": -1}, "seed must be"),
        ({"clip": 0.0}, "clip must be > 0, got 0"),
        ({"warmup": -1}, "warmup must be an int >= 0, got -1"),
        ({"tasks": {}}, "tasks must name a positive share"),
        ({"tasks": {"sudoku": 0.0}}, "tasks must name a positive share"),
        ({"tasks": {"sudoku": float("nan")}}, "share of sudoku must be a finite number >= 0"),
    ],
)
def test_bad_recipes(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe(**({"tasks": {"sudoku": 1.0}} | options))
