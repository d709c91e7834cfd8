"""A network in half precision by the kernels of its layers, in whole generations."""

from typing import Any

import pytest
import torch

import dlm
from dlm.bench.shapes import Shape, build
from dlm.execution import Execution
from dlm.job import generation_job
from dlm.kernels import fused_layers
from dlm.models import fused
from dlm.models.model import Model
from dlm.settings import Settings

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("error::RuntimeWarning"),
]
LAYERS = 2
SHAPE = Shape(256, LAYERS, 4, 2, 320, 512, 256, 10000.0)
ROWS = [[5, 6, 7, 8, 9, 10, 11], [12], [13, 14, 15]]
WINDOW_STEP = {
    "product_kernel": 3 * LAYERS,
    "gated_kernel": LAYERS,
    "rotate_kernel": LAYERS,
    "attend_kernel": LAYERS,
    "combine_kernel": LAYERS,
    "add_norm_kernel": 2 * LAYERS,
}


@pytest.fixture(scope="module", params=["bfloat16", "float16"])
def model(request: pytest.FixtureRequest) -> Model:
    made = build(SHAPE, "cuda", request.param)
    if not fused_layers.covers(torch.zeros(1, device="cuda", dtype=made.network.dtype)):
        pytest.skip("not a GPU of the generation that the kernels are for")
    return made


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts the forwards by kernels."""
    made: list[int] = []
    run = fused.run

    def counted(*given: Any) -> torch.Tensor:
        made.append(1)
        return run(*given)

    monkeypatch.setattr(fused, "run", counted)
    return made


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
@pytest.mark.parametrize("rows", [ROWS, ROWS[:1]], ids=["ragged", "one"])
def test_recorded_steps_are_plain_ones(
    model: Model,
    taken: list[int],
    monkeypatch: pytest.MonkeyPatch,
    cache: str,
    rows: Any,
    unrecorded: Execution,
) -> None:
    dlm.release(model)
    options: dict[str, Any] = {"gen_length": 24, "block_length": 12, "cache": cache}
    recorded = dlm.generate(model, rows, stop_at_eos=False, **options)
    assert 2 <= len(taken) < max(recorded.forwards)
    monkeypatch.setattr(Execution, "of", lambda model: unrecorded)
    plain = dlm.generate(model, rows, stop_at_eos=False, **options)
    assert recorded.tokens == plain.tokens
    assert recorded.forwards == plain.forwards


@pytest.mark.parametrize("cache", ["none", "dual"])
def test_the_host_does_not_wait_within_a_block(model: Model, cache: str, no_waits: Any) -> None:
    settings = Settings(gen_length=12, block_length=12, cache=cache, stop_at_eos=False)
    with torch.inference_mode():
        steps = generation_job(model, ROWS, settings).steps()
        for _ in range(4):
            next(steps)
        with no_waits():
            for _ in range(7):
                next(steps)


def test_a_step_of_a_window_is_nine_launches_a_layer(model: Model, launched: Any) -> None:
    names = launched(model, ROWS[0], stop_at_eos=False)
    assert {name: names[name] for name in WINDOW_STEP} == WINDOW_STEP
