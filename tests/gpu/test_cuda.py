"""The same answers on a CUDA device. Skipped where there is none."""

import json
from pathlib import Path

import pytest
import torch

import dlm
from dlm.decoders import DECODERS
from dlm.kernels import NoiseKey, token_statistics

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
GOLDEN = Path(__file__).parent.parent / "golden"


def test_samples_and_statistics_match_the_cpu() -> None:
    logits = torch.randn(16, 3000)
    rows = torch.arange(16)
    wanted = {"confidence", "margin", "entropy"}

    def on(device: str) -> tuple[torch.Tensor, ...]:
        key = NoiseKey(3, *(x.to(device) for x in (rows, rows, rows)))
        out = token_statistics(logits.to(device), wanted, temperature=1.0, key=key)
        assert out.confidence is not None
        assert out.margin is not None
        assert out.entropy is not None
        return out.sampled.cpu(), out.confidence.cpu(), out.margin.cpu(), out.entropy.cpu()

    for found, expected in zip(on("cuda"), on("cpu"), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_golden_trajectories() -> None:
    model = dlm.load(GOLDEN / "tiny-llada", device="cuda", dtype="float32")
    cases = json.loads((GOLDEN / "trajectories.json").read_text())["cases"]
    for case in cases:
        if case["policy"] != "threshold":
            continue
        params = case["params"]
        out = dlm.generate(
            model, [case["prompt"]], decoder="threshold", stop_at_eos=False,
            decoder_options={"threshold": params["threshold"]},
            gen_length=params["gen_length"], block_length=params["block_length"],
        )  # fmt: skip
        assert out.tokens[0] == case["output"]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("decoder", DECODERS)
def test_every_decoder_decodes_as_on_the_cpu(decoder: str, temperature: float) -> None:
    def on(device: str) -> dlm.Generation:
        model = dlm.load(GOLDEN / "tiny-llada", device=device, dtype="float32")
        return dlm.generate(
            model, [[5, 6, 7], [8]], decoder=decoder, gen_length=12, block_length=6,
            temperature=temperature, stop_at_eos=False,
        )  # fmt: skip

    cuda, cpu = on("cuda"), on("cpu")
    assert cuda.tokens == cpu.tokens
    assert cuda.forwards == cpu.forwards
