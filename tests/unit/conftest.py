"""Views made by hand, and a network that reads from a script, for tests of single decisions.

Shapes: B rows, W window.
"""

import runpy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dlm.contract import violations
from dlm.models.model import Model
from dlm.traits import Traits
from dlm.types import AnyDecoder, Decision, Facts, StepView
from dlm.window import write

MASK = 7
VECTORS = {"top_tokens", "top_probabilities", "logits"}
WHOLE = {"tokens", "sampled", "positions", "top_tokens"}

History = list[tuple[StepView, Decision]]


def tensor(name: str, value: Any) -> Tensor:
    """A field of a view from lists of one row or of several."""
    found = torch.as_tensor(value)
    if name in WHOLE:
        found = found.long()
    elif found.dtype != torch.bool and name != "logits":
        found = found.float()
    return found[None] if found.dim() < (3 if name in VECTORS else 2) else found


def per_row(value: Any, batch: int) -> Tensor:
    return torch.as_tensor(value).long().expand(batch).clone()


def make_view(**fields: Any) -> StepView:
    """A view of the fields that matter; all positions are masked unless `masked` is given."""
    rows = {name: fields.pop(name, 0) for name in ("block_start", "row_start", "step", "limit")}
    quota, row_stop = fields.pop("quota", 1), fields.pop("row_stop", None)
    size: int | None = fields.pop("block_length", None)
    made = {name: tensor(name, value) for name, value in fields.items() if value is not None}
    like = next(iter(made.values()))
    batch, width = like.shape[:2]
    made.setdefault("masked", torch.ones(batch, width, dtype=torch.bool))
    masked = made["masked"]
    rows = {name: per_row(value, batch) for name, value in (rows | {"quota": quota}).items()}
    rows["row_stop"] = rows["block_start"] + width if row_stop is None else per_row(row_stop, batch)
    made.setdefault("tokens", torch.zeros(batch, width, dtype=torch.int64).masked_fill(masked, 7))
    made.setdefault("sampled", torch.ones(batch, width, dtype=torch.int64))
    made.setdefault("positions", torch.arange(width) + rows["block_start"][:, None])
    made.setdefault("editable", ~masked)
    return StepView(**made, **rows, block_length=width if size is None else size)


def play(
    decoder: AnyDecoder,
    speak: Callable[[int, StepView], Mapping[str, Any]],
    blank: Any,
    *,
    limit: int = 0,
    most: int = 400,
) -> History:
    """Decode one block of one or more rows by what `speak` says of each forward's view.

    Every decision is checked against the contract. Fails beyond `most` forwards.
    """
    inside = tensor("masked", blank)
    tokens = torch.zeros(inside.shape, dtype=torch.int64).masked_fill(inside, MASK)
    state = decoder.init_state(*inside.shape)
    seen: History = []
    hold = torch.zeros(len(inside), dtype=torch.bool)
    for number in range(most + 1):
        open_ = inside & (tokens == MASK)
        if not (open_.any() or hold.any()):
            return seen
        assert number < most, f"still decoding after {most} forwards"
        left = max(limit - number, 1)
        quota = -(-open_.sum(-1) // left) if limit else 1
        view = make_view(
            tokens=tokens, masked=open_, editable=inside & ~open_, step=number, limit=limit,
            quota=quota,
        )  # fmt: skip
        said: dict[str, Any] = {k: tensor(k, value) for k, value in speak(number, view).items()}
        view = replace(view, **said)
        state, decision = decoder.step(state, view)
        broken = violations(decision, view, Traits.of(decoder))
        assert not any(broken.values()), broken
        seen.append((view, decision))
        tokens = write(tokens, view, decision, MASK)
        hold = torch.zeros_like(hold) if decision.hold is None else decision.hold
    return seen


def facts_of(
    background: Any = None, vocab: int = 8, blocks: int = 1, block_length: int = 8
) -> Facts:
    table = torch.full((vocab,), 1 / vocab) if background is None else torch.tensor(background)
    return Facts(vocab, vocab - 1, torch.device("cpu"), blocks, block_length, lambda: table)


@pytest.fixture(scope="session")
def view_of() -> Callable[..., StepView]:
    """Makes a view: `view_of(confidence=[0.9, 0.2], masked=[True, False], quota=2)`."""
    return make_view


@pytest.fixture(scope="session")
def script() -> Callable[..., History]:
    """Plays a decoder against a scripted network."""
    return play


@pytest.fixture(scope="session")
def facts() -> Callable[..., Facts]:
    """Facts of a small model, to bind decoders to."""
    return facts_of


def columns(mask: Tensor, row: int = 0) -> list[int]:
    return [column for column, on in enumerate(mask[row].tolist()) if on]


@pytest.fixture(scope="session")
def picked() -> Callable[..., list[int]]:
    """The marked columns of a row."""
    return columns


@pytest.fixture
def recorded_launches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Any, str], Any]:
    """Puts a recorder of launches in the place of a kernel of a module."""
    triton = pytest.importorskip("triton")
    if triton.knobs.runtime.interpret:
        pytest.skip("TRITON_INTERPRET is set: there is nothing to compile")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    recorder = runpy.run_path(str(Path(__file__).parent / "launches.py"))["Recorder"]

    def put(module: Any, name: str) -> Any:
        made = recorder(getattr(module, name))
        monkeypatch.setattr(module, name, made)
        return made

    return put


@pytest.fixture
def gated(golden: Model) -> Any:
    """The golden network, whose forwards wait until its gate is opened."""
    cases = runpy.run_path(str(Path(__file__).parent / "engine_cases.py"))
    return cases["Gated"](golden.network)


@pytest.fixture
def gated_model(golden: Model, gated: Any) -> Model:
    """The golden model with that network."""
    return replace(golden, network=gated)


@pytest.fixture
def serve() -> Iterator[Callable[..., Any]]:
    """Starts a server with a script, for tests of what is served."""
    cases = runpy.run_path(str(Path(__file__).parent / "serving_cases.py"))
    with cases["servers"]() as start:
        yield start
