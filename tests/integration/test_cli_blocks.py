"""`dlm generate` in blocks and in one."""

import json
from typing import Any

from typer.testing import CliRunner

import dlm
from dlm.cli import app
from dlm.models.model import Model

PROMPT = "Sudoku: 3102200002100320"


def test_generation_in_one_block(folder: str, model: Model) -> None:
    args = ["generate", PROMPT, "--model", folder, "--gen-length", "40", "--json"]
    args += ["--decoder", "random", "--no-stop-at-eos", "--block-length"]
    found = {}
    for name in ("none", "32"):
        result = CliRunner().invoke(app, [*args, name], prog_name="dlm")
        assert result.exit_code == 0, result.output
        found[name] = json.loads(result.stdout)["tokens"]
    options: dict[str, Any] = {"gen_length": 40, "decoder": "random", "stop_at_eos": False}
    for name, length in (("none", None), ("32", 32)):
        tokens = dlm.generate(model, PROMPT, block_length=length, **options).tokens
        assert [found[name]] == tokens
    assert found["none"] != found["32"]
