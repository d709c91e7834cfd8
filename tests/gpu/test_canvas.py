"""The kernels beside the network in whole generations; `test_triton.py` runs their cases."""

from importlib.util import find_spec
from typing import Any

import pytest
import torch

import dlm
from dlm.bench.shapes import Shape, build
from dlm.kernels import canvas_check, fused_canvas
from dlm.models.model import Model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed"),
    pytest.mark.filterwarnings("error::RuntimeWarning"),
]
SHAPE = Shape(256, 2, 4, 2, 320, 512, 256, 10000.0)
ROWS = [[5, 6, 7, 8, 9, 10, 11], [12], [13, 14, 15]]
LAUNCHES = ("look", "stretch", "rank", "judge", "write", "stop", "locate")
GENERATIONS: list[tuple[str, dict[str, Any]]] = [
    ("low_confidence", {"cache": "dual"}),
    ("low_confidence", {"cache": "prefix", "cfg_scale": 1.0, "stop_at_eos": False}),
    ("threshold", {"cache": "dual", "refresh_every": 2}),
    ("threshold", {"cache": "dual", "refresh_around": 3}),
    ("remdm", {"steps": 12, "temperature": 1.0}),
    ("saber", {}),
    ("wino", {"cache": "prefix"}),
    ("lopa", {"cache": "dual", "refresh_every": 2}),
    ("info_gain", {"cache": "prefix", "cfg_scale": 1.0}),
]


@pytest.fixture(scope="module")
def model() -> Model:
    return build(SHAPE, "cuda", "bfloat16")


def test_the_self_check_passes() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    assert canvas_check.difference(device) is None


@pytest.mark.parametrize("rows", [ROWS, ROWS[:1]], ids=["ragged", "one"])
@pytest.mark.parametrize(("decoder", "options"), GENERATIONS)
def test_generations_are_those_of_torch(
    model: Model,
    decoder: str,
    options: dict[str, Any],
    rows: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Recorded as CUDA graphs, in which another kernel than in plain steps could not be loaded."""

    def run() -> dlm.Generation:
        dlm.release(model)
        return dlm.generate(
            model, rows, decoder=decoder, gen_length=24, block_length=12, seed=3, **options
        )

    found = run()
    monkeypatch.setattr(fused_canvas, "ON_CUDA", False)
    expected = run()
    assert (found.tokens, found.forwards) == (expected.tokens, expected.forwards)


@pytest.mark.parametrize("stop_at_eos", [False, True])
def test_a_step_of_a_window_is_seven_launches(
    model: Model, launched: Any, stop_at_eos: bool
) -> None:
    names = launched(model, ROWS[0], stop_at_eos=stop_at_eos)
    assert [names[f"{name}_kernel"] for name in LAUNCHES] == [1] * len(LAUNCHES)
