"""What becomes of a model that is cut over two processes when one of them ends."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer
from typer.testing import CliRunner

import dlm
from dlm.cli.errors import Commands
from dlm.eval.cli import attach
from dlm.serving.engine import Engine

CASES = SimpleNamespace(
    **runpy.run_path(str(Path(__file__).parent.parent / "unit" / "engine_cases.py"))
)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_process_that_ends_ends_the_model() -> None:
    model = dlm.load(tensor_parallel_size=2)
    assert model.leader is not None
    (process,) = model.leader.processes
    engine = Engine(model)
    process.kill()
    process.wait()
    client = CASES.Client(dlm.load(), [[7]]).ask(engine)
    assert "a process of the model has ended" in str(client.wait().error)
    engine.thread.join(CASES.PATIENCE)
    assert not engine.running
    with pytest.raises(ChildProcessError, match="has ended: load it again"):
        dlm.generate(model, [[7]], gen_length=4)


@pytest.mark.slow
def test_an_evaluation_takes_it(tmp_path: Path) -> None:
    """Its processes end with it, and a run of one process may go on with two."""
    command = typer.Typer(cls=Commands)
    attach(command)
    args = ["eval", "arithmetic", "--limit=2", "--decoder=threshold", "--json"]
    rows = []
    for size, folder in ((1, "a"), (2, "b"), (1, "b")):
        more = [f"--tensor-parallel-size={size}", f"--output={tmp_path / folder}"]
        found = CliRunner().invoke(command, [*args, *more], prog_name="dlm")
        assert found.exit_code == 0, found.output
        rows.append([json.loads(line)["score"] for line in found.stdout.splitlines()])
    assert rows[0] == rows[1] == rows[2]
