"""A run goes on with the recipe, network, data and words it began with, or says what differs."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import dlm
from dlm.data import Example
from dlm.exclusive import alone
from dlm.models.tokenizers import read_tokenizer
from dlm.training.loop import STATE, Recipe
from dlm.training.run import Shape, new_network, train
from dlm.training.state import words

ASSETS = Path(dlm.__file__).parent / "assets" / "tiny"
SHAPE = Shape(width=32, layers=1, heads=2, mlp_width=64)
OWN = (Example("own", "ping", "pong"), Example("own", "tick", "tock"))
RECIPE = Recipe(tasks={"sudoku": 1.0, "file": 1.0}, steps=2, tokens_per_batch=200, warmup=1)


def go(out: Path, *, recipe: Recipe = RECIPE, shape: Shape = SHAPE, **options: Any) -> None:
    """Train with the built-in words unless others are given."""
    tokenizer = options.pop("tokenizer", None) or read_tokenizer(str(ASSETS))
    options = {"examples": OWN, "held_out": frozenset({"a", "b"})} | options
    train(recipe, new_network(shape, tokenizer, 0), tokenizer, out, **options)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ran")
    go(out)
    return out


def foreign() -> Any:
    """The built-in words with another chat template."""
    tokenizer: Any = read_tokenizer(str(ASSETS))
    tokenizer.chat_template = tokenizer.chat_template.replace("| trim", "| upper")
    return tokenizer


@pytest.mark.parametrize(
    ("options", "differ"),
    [
        ({"shape": replace(SHAPE, heads=4)}, ["network.n_heads", "network.n_kv_heads"]),
        ({"shape": replace(SHAPE, rope_theta=5e3)}, ["network.rope_theta"]),
        ({"examples": OWN[::-1]}, ["examples"]),
        ({"examples": [OWN[0], Example("own", "tick", "tack")]}, ["examples"]),
        ({"held_out": frozenset({"a"})}, ["held_out"]),
        ({"tokenizer": foreign()}, ["tokenizer"]),
        ({"recipe": replace(RECIPE, clip=2.0)}, ["clip"]),
    ],
)
def test_another_run_is_told_by_what_differs(
    ran: Path, options: dict[str, Any], differ: list[str]
) -> None:
    with pytest.raises(ValueError, match="was written by another run; these differ: ") as refused:
        go(ran, resume=True, **options)
    assert str(refused.value).endswith(f"these differ: {differ}")


def test_the_same_run_goes_on_wherever_its_files_lie(ran: Path) -> None:
    moved = [Example("renamed", e.prompt, e.response, "renamed.jsonl:1") for e in OWN]
    go(ran, resume=True, examples=moved, tokenizer=read_tokenizer(str(ran)))


def test_a_run_from_a_model_goes_on_wherever_that_lies(ran: Path, tmp_path: Path) -> None:
    def further(start: Path, resume: bool) -> None:
        model = dlm.load(start, dtype="float32")
        out = tmp_path / "out"
        train(RECIPE, model.network, model.tokenizer, out, examples=OWN, resume=resume)

    further(ran, False)
    shutil.copytree(ran, tmp_path / "moved")
    further(tmp_path / "moved", True)


def test_the_words_are_those_before_a_call_with_padding() -> None:
    tokenizer: Any = read_tokenizer(str(ASSETS))
    before = words(tokenizer)
    tokenizer(["a", "a b c"], padding=True, truncation=True, max_length=2)
    assert words(tokenizer) == before


def change(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Edit a checkpoint in place."""
    state = torch.load(path, weights_only=True)
    edit(state)
    torch.save(state, path)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda s: s.pop("step"), "is damaged: .*; it lacks step"),
        (lambda s: s.update(network=[], optimizers={}), "it lacks network, optimizers"),
        (lambda s: [s.pop("config"), s.pop("given")], "earlier version, .* no config, given: del"),
        (lambda s: s["network"].popitem(), "was written for a network of another shape"),
    ],
)
def test_a_checkpoint_that_lacks_something(
    tmp_path: Path, edit: Callable[[dict[str, Any]], object], message: str
) -> None:
    go(tmp_path)
    change(tmp_path / STATE, edit)
    with pytest.raises(ValueError, match=message):
        go(tmp_path, resume=True)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_checkpoint_that_was_cut_is_damaged(ran: Path, tmp_path: Path, share: float) -> None:
    whole = (ran / STATE).read_bytes()
    (tmp_path / STATE).write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match="is damaged: delete it to train from the first step"):
        go(tmp_path, resume=True)


def test_a_machine_without_memory_damages_nothing(
    ran: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9")

    monkeypatch.setattr(torch, "load", full)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        go(ran, resume=True)


def test_words_of_a_tokenizer_that_is_not_fast() -> None:
    from transformers import ByT5Tokenizer

    one, other = ByT5Tokenizer(), ByT5Tokenizer(extra_ids=3)
    assert words(one) == words(ByT5Tokenizer())
    assert words(one) != words(other)


def test_a_checkpoint_of_something_else_is_damaged(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / STATE)
    with pytest.raises(ValueError, match="is damaged"):
        go(tmp_path, resume=True)


def test_a_folder_is_of_one_run_at_a_time(tmp_path: Path) -> None:
    with alone(tmp_path), pytest.raises(ValueError, match="one run at a time"):
        go(tmp_path)
    assert not (tmp_path / STATE).exists()
    go(tmp_path)


def test_a_run_that_began_meanwhile_is_not_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def late(folder: Path) -> Iterator[None]:
        (folder / STATE).touch()  # of the run that had the folder until now
        yield

    monkeypatch.setattr("dlm.training.run.alone", late)
    with pytest.raises(ValueError, match="holds a run already"):
        go(tmp_path)


def test_processes_of_a_launcher_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="training must be of one process, got WORLD_SIZE=2"):
        go(tmp_path / "out")
    assert not (tmp_path / "out").exists()
