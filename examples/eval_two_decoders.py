"""Evaluate two decoders on one task and compare them, problem by problem.

    python examples/eval_two_decoders.py --task word_problems --limit 100
    python examples/eval_two_decoders.py low_confidence wino --output runs

Runs go on where they were stopped: what stands in the output folder is not decoded again.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import dlm
from dlm.eval import TASKS, choose_options, choose_templates, compare, evaluate, make_plan


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Compare decoders on a generated task.")
    parser.add_argument("decoders", nargs="*", default=["low_confidence", "threshold"])
    parser.add_argument("--model", help="folder or Hugging Face id; the built-in one if absent")
    parser.add_argument("--task", default="arithmetic", choices=("arithmetic", "word_problems"))
    parser.add_argument("--limit", type=int, default=50, help="problems")
    parser.add_argument("--output", type=Path, help="folder for the runs; thrown away if absent")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> None:
    """Run every decoder on the same problems and print the differences to the first."""
    asked = arguments(given)
    model = dlm.load(asked.model)
    task = TASKS[asked.task]
    templates = choose_templates(task, [], chat=True)
    with tempfile.TemporaryDirectory() as scratch:
        runs = []
        for decoder in asked.decoders:
            options = choose_options(task, None, {"decoder": decoder})
            plan = make_plan(task, templates, options, limit=asked.limit)
            folder = (asked.output or Path(scratch)) / decoder
            runs.append(evaluate(model, plan, folder, name=asked.model or "built-in"))
        for found in compare(runs):
            print(f"{found.other} against {found.baseline}, {found.pairs} problems")
            print(f"  score {found.scores[1]:.2f} against {found.scores[0]:.2f}, p = {found.p:.3f}")
            print(f"  {found.forwards.value:.2f} times the forwards")


if __name__ == "__main__":
    main()
