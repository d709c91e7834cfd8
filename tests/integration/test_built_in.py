"""The model in the package: small, loadable, and good enough to tell decoders apart."""

import subprocess
import sys
from pathlib import Path

import pytest

import dlm
from dlm.data import generate_examples, sudoku
from dlm.models.model import Model
from dlm.training.score import WAYS, score

ASSETS = Path(dlm.__file__).parent / "assets"
PUZZLES = Path(__file__).parents[3] / "shared" / "data" / "sudoku_4x4.csv"


@pytest.fixture(scope="module")
def model() -> Model:
    return dlm.load()


def test_assets_fit_the_package() -> None:
    assert sum(f.stat().st_size for f in ASSETS.rglob("*") if f.is_file()) <= 16 << 20


def test_facts(model: Model) -> None:
    assert model.tokenizer is not None
    assert model.spec.mask_id == model.tokenizer.mask_token_id
    assert set(model.spec.stop_ids) == {1, 4}
    assert model.spec.unused == (768, 768)


@pytest.mark.slow
def test_what_is_left_unfinished_ends_with_the_interpreter() -> None:
    """Without a word: the first few of many are a usual thing to ask for."""
    code = (
        "import dlm; model = dlm.load(); s = dlm.stream(model, 'a', gen_length=8); next(s);"
        "each = dlm.generate_each(model, ['a', 'b'], gen_length=8, batch_size=1); next(each);"
        "pairs = dlm.log_likelihoods(model, [('a', 'b'), ('c', 'd')]); next(pairs)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_solves_held_out_sudokus(model: Model) -> None:
    examples = list(generate_examples("sudoku", 5, count=60, split="test"))
    one = score(model, examples, 20, WAYS["low_confidence, one token a forward"])
    assert one.solved >= 0.9
    at_once = score(model, examples, 20, WAYS["all at once"])
    assert at_once.forwards == 1.0
    assert at_once.solved < one.solved, "the decoders must tell apart"


def test_solves_held_out_word_problems(model: Model) -> None:
    examples = list(generate_examples("word_problems", 5, count=60, split="test"))
    assert score(model, examples, 36, WAYS["threshold 0.9"]).solved >= 0.7


@pytest.mark.skipif(not PUZZLES.exists(), reason="the published puzzles are not here")
def test_solves_published_sudokus(model: Model) -> None:
    examples = sudoku.read_csv(PUZZLES)[::10]
    assert score(model, examples, 20, WAYS["threshold 0.9"]).solved >= 0.9


def test_the_example_of_the_readme(model: Model) -> None:
    puzzle = "Sudoku: 3102200002100320"
    out = dlm.generate(
        model, [{"role": "user", "content": puzzle}], decoder="threshold", gen_length=20
    )
    assert out.texts is not None
    assert sudoku.is_correct(puzzle, out.texts[0])
    assert out.forwards[0] <= 20
