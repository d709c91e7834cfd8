"""What becomes of a model that is cut over two processes when one of them ends."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

import dlm
from dlm.cli import app
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


def test_the_command_takes_it(capfd: pytest.CaptureFixture[str]) -> None:
    """And its processes end with it."""
    args = ["generate", "1+1=", "--gen-length=4", "--json"]
    plain, found = (
        CliRunner().invoke(app, [*args, f"--tensor-parallel-size={size}"], prog_name="dlm")
        for size in (1, 2)
    )
    assert (found.exit_code, plain.exit_code) == (0, 0)
    assert json.loads(found.stdout)["text"] == json.loads(plain.stdout)["text"]
