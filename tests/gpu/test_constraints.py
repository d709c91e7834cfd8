"""Texts of a form on a GPU: recorded steps, and a host that does not wait. Skipped without one."""

import json
from typing import Any

import pytest
import torch

import dlm
from dlm.execution import Execution
from dlm.job import generation_job
from dlm.models.model import Model
from dlm.settings import Settings

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
PROMPTS = ["Who?", "What is it that you have there?", "Say"]
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}


@pytest.fixture(scope="module")
def model() -> Model:
    return dlm.load(device="cuda", dtype="float32")


@pytest.fixture(scope="module")
def person(model: Model) -> dlm.Constraint:
    return dlm.Constraint.json_schema(model, SCHEMA)


@pytest.fixture(scope="module")
def several(model: Model, person: dlm.Constraint) -> list[dlm.Constraint]:
    """One for each prompt, of unlike sizes."""
    return [person, dlm.Constraint.choice(model, ["yes", "no"]), dlm.Constraint.json_object(model)]


@pytest.mark.parametrize("options", [{}, {"top_p": 0.9}, {"cache": "dual"}], ids=str)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("decoder", ["low_confidence", "threshold", "random", "saber", "dream"])
def test_recorded_steps_are_held_to_it(
    model: Model,
    several: list[dlm.Constraint],
    decoder: str,
    temperature: float,
    options: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And decode what plain ones do; each row as it would be alone."""
    if decoder == "saber" and "cache" in options:
        pytest.skip("it takes no cache")
    given: dict[str, Any] = {"gen_length": 40, "block_length": 10, "decoder": decoder}
    given |= {"temperature": temperature, **options}
    recorded = dlm.generate(model, PROMPTS, constraint=several, **given)
    person, choice, other = recorded.texts or []
    assert set(json.loads(person)) == {"name", "age"}
    assert choice in ("yes", "no")
    assert isinstance(json.loads(other), dict)
    alone = dlm.generate(model, PROMPTS[:1], constraint=several[0], **given)
    assert alone.tokens[0] == recorded.tokens[0]
    monkeypatch.setattr(Execution, "of", lambda model: Execution())
    plain = dlm.generate(model, PROMPTS, constraint=several, **given)
    assert plain.tokens == recorded.tokens


def test_the_host_does_not_wait_within_a_block(
    model: Model, several: list[dlm.Constraint], no_waits: Any
) -> None:
    """From the fifth forward on: the first of each shape compiles, the second is recorded."""
    options: dict[str, Any] = {"gen_length": 24, "block_length": None, "stop_at_eos": False}
    settings = Settings(constraint=several, **options)
    job = generation_job(model, PROMPTS, settings)
    with torch.inference_mode():
        steps = job.steps()
        for _ in range(4):
            next(steps)
        with no_waits():
            for _ in range(12):
                next(steps)


def test_a_gpu_draws_what_a_cpu_does(model: Model, person: dlm.Constraint) -> None:
    """But for close calls, of which there are few."""
    given: dict[str, Any] = {"gen_length": 40, "block_length": 10, "constraint": person}
    given |= {"temperature": 1.0, "decoder": "random"}
    here = dlm.generate(dlm.load(dtype="float32"), PROMPTS * 8, **given).tokens
    there = dlm.generate(model, PROMPTS * 8, **given).tokens
    assert sum(a == b for a, b in zip(here, there, strict=True)) >= 20
