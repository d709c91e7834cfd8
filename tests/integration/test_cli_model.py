"""What `dlm generate` and `dlm serve` say about the model that they load."""

import importlib.util
import json
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import dlm
from dlm.cli import app, loading
from dlm.cli.loading import load_model
from dlm.models.model import Model


def run(*args: str) -> Any:
    return CliRunner().invoke(app, list(args), prog_name="dlm")


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What `dlm.load` is given, instead of loading."""
    found: list[Any] = []
    monkeypatch.setattr("dlm.models.loading.load", lambda *name, **facts: found.append(facts))
    return found


@pytest.fixture
def bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if it were installed."""
    monkeypatch.setattr(loading, "find_spec", lambda name: name)


@pytest.mark.parametrize("command", [["generate", "x"], ["serve", "--port=0"]], ids=" ".join)
def test_facts_reach_the_library(
    command: list[str], loads: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dlm.cli.serve.run", lambda *given: None)
    monkeypatch.setattr("dlm.cli.job.Job.run", lambda *given, **more: None)
    args = ["--model=m", "--device-map=auto", "--attn-implementation=eager", "--stop-ids=3"]
    assert run(*command, *args, "--stop-ids=7", "--mask-id=9").exit_code == 0
    assert {name: value for name, value in loads[0].items() if value is not None} == {
        "dtype": "auto",
        "device_map": "auto",
        "tensor_parallel_size": 1,
        "attn_implementation": "eager",
        "stop_ids": [3, 7],
        "mask_id": 9,
    }


def test_a_text_ends_where_it_is_told_to(folder: str, model: Model) -> None:
    options: dict[str, Any] = {"gen_length": 6, "temperature": 1.0}
    (plain,) = dlm.generate(model, "x", stop_at_eos=False, **options).tokens
    args = ["--model", folder, "--gen-length=6", "--temperature=1", "--json"]
    found = json.loads(run("generate", "x", *args, f"--stop-ids={plain[2]}").stdout)
    ended = dlm.load(folder, stop_ids=[plain[2]])
    assert [found["text"]] == dlm.generate(ended, "x", **options).texts
    assert found["text"] != model.tokenizer.decode(plain)  # type: ignore[union-attr]


def test_a_map_excludes_a_device(folder: str) -> None:
    args = ["generate", "x", "--model", folder, "--device-map=auto"]
    assert run(*args, "--gen-length=2").exit_code == 0
    result = run(*args, "--device=cpu")
    assert result.exit_code == 2
    assert "give device or device_map, not both: 'cpu' and 'auto'" in result.stderr


@pytest.mark.usefixtures("bitsandbytes")
def test_weights_are_quantized(loads: list[Any]) -> None:
    load_model("m", None, "auto", quantize="8bit", adapter="a")
    load_model("m", "cpu", "auto", quantize="4bit")
    load_model("m", "cuda", "auto", quantize="4bit")
    eight, four, _ = (facts["quantization_config"] for facts in loads)
    assert eight.load_in_8bit
    assert not eight.load_in_4bit
    assert four.load_in_4bit
    assert (four.bnb_4bit_quant_type, four.bnb_4bit_compute_dtype) == ("nf4", torch.bfloat16)
    assert loads[0]["merge"] is False  # into quantized weights it would be rounded
    # transformers takes a GPU for quantized weights, unless a map says otherwise.
    places = [(facts["device"], facts.get("device_map")) for facts in loads]
    assert places == [(None, None), (None, {"": "cpu"}), ("cuda", None)]


def test_integers_for_a_cpu_take_an_adapter_and_need_no_map(loads: list[Any]) -> None:
    load_model("m", "cpu", "auto", quantize="w8a8", adapter="a")
    (facts,) = loads
    assert facts["quantization_config"].quant_method == "w8a8"
    assert facts["merge"] is True
    assert (facts["device"], facts.get("device_map")) == ("cpu", None)


def test_what_quantizing_needs_is_said_before_anything_is_loaded(
    loads: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    for width, message in (
        ("8bit", "quantize '8bit' needs bitsandbytes, which is not installed: pip install bitsand"),
        ("8bits", "unknown quantize '8bits'. Did you mean '8bit'?"),
    ):
        result = run("generate", "x", "--quantize", width)
        assert result.exit_code == 2
        assert message in result.stderr
    assert loads == []


@pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)
def test_quantized_weights_decode(folder: str) -> None:
    args = ["--gen-length=6", "--no-stop-at-eos", "--quantize=8bit", "--json"]
    result = run("generate", "x", "--model", folder, *args)
    assert result.exit_code == 0, result.output
    assert len(json.loads(result.stdout)["tokens"]) == 6


@pytest.mark.parametrize(
    ("name", "given", "told"),
    [
        ("m", {}, True),
        ("m", {"device": "cpu"}, False),
        ("m", {"device_map": "auto"}, False),
        (None, {}, False),
    ],
    ids=str,
)
def test_a_gpu_that_is_not_taken_is_mentioned(
    name: str | None,
    given: dict[str, Any],
    told: bool,
    loads: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    load_model(name, given.pop("device", None), "auto", **given)
    line = "decoding on the CPU: --device cuda takes the GPU of this machine\n"
    assert capsys.readouterr().err == (line if told else "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    load_model("m", None, "auto")
    assert capsys.readouterr().err == ""
