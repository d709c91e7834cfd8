"""Compare the accuracy and forward passes of every decoder on the built-in model.

python -m dlm.training.compare --sudoku sudoku_4x4.csv \
    --countdown countdown.jsonl --out docs/decoders
python -m dlm.training.compare --render --out docs/decoders

The first command appends a line to `results.jsonl` for every cell it finishes and skips those that
are already there, so an interrupted run continues. The second one writes the tables between the
marker comments of `docs/decoders.md` and draws `docs/decoders/accuracy.svg`.
"""

import argparse
import sys
import zlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import torch

from dlm.data import Example
from dlm.decoders import DECODERS
from dlm.models.loading import load
from dlm.models.model import Model
from dlm.options import integer
from dlm.training.cells import COUNTS, Results, plan
from dlm.training.page import render
from dlm.training.score import LENGTHS, held_out, score


def checksum(model: Model, examples: Mapping[str, Sequence[Example]]) -> str:
    """CRC-32 of the weights and the prompts: what results depend on besides the code."""
    crc = 0
    for _, weight in sorted(model.network.state_dict().items()):
        values = weight.detach().contiguous().cpu().flatten()
        crc = zlib.crc32(values.view(torch.uint8).numpy(), crc)
    for task, problems in examples.items():
        crc = zlib.crc32("\n".join([task, *(each.prompt for each in problems)]).encode(), crc)
    return f"{crc:08x}"


def run(
    model: Model,
    examples: Mapping[str, Sequence[Example]],
    results: Results,
    decoders: Collection[str],
    seeds: int,
) -> None:
    """Decode every cell that has no line yet.

    Raises:
        ValueError: the file holds results of another model or of other problems.
    """
    inputs = checksum(model, examples)
    if any(line["inputs"] != inputs for line in results.lines.values()):
        raise ValueError(
            f"{results.path} must hold results of this model and these problems alone: "
            "move it away, or give the same --count and files"
        )
    cells = list(plan(decoders, seeds))
    for number, cell in enumerate(cells, start=1):
        if results.name(cell.key) in results.lines:
            continue
        way = {
            "decoder": cell.way.decoder,
            "decoder_options": cell.way.options,
            "share": cell.way.share,
            "temperature": cell.way.temperature,
            "seed": cell.seed,
            "block_length": cell.way.block_length,
        }
        found = score(model, examples[cell.task], LENGTHS[cell.task], way)
        results.add(
            {
                **cell.key,
                "solved": found.right,
                "total": found.total,
                "forwards": round(found.forwards, 4),
                "tokens_per_forward": round(found.tokens_per_forward, 4),
                "inputs": inputs,
            }
        )
        what = f"{cell.task} {cell.way.decoder} ({cell.way.label}) seed {cell.seed}"
        told = f"{found.solved:.1%} solved, {found.forwards:.1f} forwards"
        print(f"[{number}/{len(cells)}] {what}: {told}", file=sys.stderr, flush=True)
    results.sort()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the comparison, or render the results of earlier runs."""
    parser = argparse.ArgumentParser(prog="python -m dlm.training.compare", description=__doc__)
    parser.add_argument("--model", help="folder; the built-in model if absent")
    parser.add_argument("--sudoku", type=Path, help="CSV of puzzles, needed for a run")
    parser.add_argument("--countdown", type=Path, help="JSONL instead of generated problems")
    parser.add_argument("--count", type=int, default=500, help=f"of each task, at most {COUNTS}")
    parser.add_argument("--seeds", type=int, default=3, help="of settings that draw; 3")
    parser.add_argument("--decoder", action="append", choices=list(DECODERS), help="default: all")
    parser.add_argument("--again", action="store_true", help="forget what the decoders have done")
    parser.add_argument("--render", action="store_true", help="tables and picture; decodes nothing")
    parser.add_argument("--out", type=Path, required=True, help="folder; its page is OUT.md")
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    results = Results(given.out / "results.jsonl")
    try:
        if given.render:
            render(results, given.out.with_suffix(".md"), given.out / "accuracy.svg")
            return
        if given.sudoku is None:
            raise ValueError("a run needs --sudoku")
        most = integer("count", given.count, least=1)
        integer("seeds", given.seeds, least=1)
        decoders = given.decoder or DECODERS
        if given.again:
            results.forget(decoders)
        examples = {
            task: held_out(task, min(most, count), given.sudoku, given.countdown)
            for task, count in COUNTS.items()
        }
        run(load(given.model), examples, results, decoders, given.seeds)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
