"""`--adapter` of the commands that load a model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

import dlm
from dlm.cli import app
from dlm.cli.errors import Commands
from dlm.decoders.artefact import ScheduleArtefact
from dlm.distill.certainty_recipe import Recipe, adapter_config
from dlm.eval.cli import attach
from dlm.eval.folder import read_run
from dlm.models.adapter import wrap, write

PROMPT = "Sudoku: 3102200002100320"
SHORT = ["--gen-length", "6", "--block-length", "6"]


@pytest.fixture(scope="module")
def adapter(folder: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An adapter that changes what the model says."""
    out = tmp_path_factory.mktemp("adapter")
    network = dlm.load(folder).network
    wrapped = wrap(network, adapter_config(network, Recipe(rank=2)))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if "lora_B" in name:
                weight.normal_(generator=generator)
    write(wrapped, out, folder)
    return str(out)


def run_well(*args: str) -> Any:
    result = CliRunner().invoke(app, list(args), prog_name="dlm")
    assert result.exit_code == 0, result.output
    return result


def tokens(model: dlm.Model) -> list[list[int]]:
    return dlm.generate(model, PROMPT, gen_length=6, block_length=6).tokens


def test_generate_decodes_with_the_adapter(folder: str, adapter: str) -> None:
    args = ["generate", PROMPT, "--model", folder, *SHORT, "--json"]
    found = json.loads(run_well(*args, "--adapter", adapter).stdout)
    assert [found["tokens"]] == tokens(dlm.load(folder, adapter=adapter, merge=True))
    assert [found["tokens"]] != tokens(dlm.load(folder))


def test_an_adapter_that_is_not_there_is_named(folder: str, tmp_path: Path) -> None:
    args = ["generate", PROMPT, "--model", folder, *SHORT]
    result = CliRunner().invoke(app, [*args, "--adapter", str(tmp_path)], prog_name="dlm")
    assert result.exit_code == 2
    assert "no adapter_config.json in the adapter" in result.stderr


def test_a_schedule_is_learned_with_the_adapter(folder: str, adapter: str, tmp_path: Path) -> None:
    args = ["distill", "schedule", PROMPT, "--model", folder, "--budget", "3", "--no-scale"]
    run_well(*args, *SHORT, "--refreshes", "0", "--out", str(tmp_path), "--adapter", adapter)
    made = ScheduleArtefact.load(tmp_path / "schedule-3.json")
    assert made.model.id == f"{folder} + {adapter}"


def test_an_evaluation_names_the_adapter(folder: str, adapter: str, tmp_path: Path) -> None:
    runner = typer.Typer(cls=Commands)
    attach(runner)

    def settings(name: str, *more: str) -> dict[str, Any]:
        args = ["eval", "sudoku", "--model", folder, "--limit", "2", "--template", "plain"]
        args += [*SHORT, "--output", str(tmp_path / name), "--json", *more]
        result = CliRunner().invoke(runner, args, prog_name="dlm")
        assert result.exit_code == 0, result.output
        return read_run(tmp_path / name).settings

    plain, adapted = settings("plain"), settings("adapted", "--adapter", adapter)
    assert adapted["model"] == f"{folder} + {adapter}"
    assert adapted["weights"] != plain["weights"]
