"""Prints the figures below the tables of docs/decoders.md that are no cells of them.

python docs/decoders/observe.py --sudoku sudoku_4x4.csv

Five minutes on one core. Every line has the bullet of the page it belongs to above it.
"OMP_NUM_THREADS=1" in front keeps it to one core.
"""

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any, ClassVar

import torch
from torch import Tensor

import dlm
from dlm.data import TASKS, Example
from dlm.decoders import DeferredCommitment, LoPA
from dlm.decoders.base import Policy
from dlm.measure import background
from dlm.models.model import Model
from dlm.prompts import encode_prompts
from dlm.training.score import BATCH, LENGTHS, held_out
from dlm.trajectory import Change, Trajectory
from dlm.types import Decision

GRID = 16  # digits of a 4x4 sudoku, the first tokens of its answer
SURE = 0.9  # tokens of less confidence are called unsure


@dataclass(frozen=True, slots=True)
class Row:
    """One problem decoded."""

    example: Example
    text: str
    right: bool
    forwards: int
    trajectory: Trajectory


class Probe(Policy):
    """Commits all at once, then keeps what one more forward says of the complete rows."""

    needs: ClassVar = frozenset({"confidence", "token_probability", "leave_one_out"})
    mutates_committed: ClassVar = True
    paper = ""

    def __init__(self) -> None:
        self.seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def max_forwards(self, blanks: Tensor, limit: int | None) -> Tensor:
        """One to commit, one to look."""
        return torch.full_like(blanks, 2)

    def init_state(self, batch: int, length: int) -> Tensor:
        """Nothing worth carrying."""
        return torch.zeros(batch, dtype=torch.int64)

    def step(self, state: Tensor, view: Any) -> tuple[Tensor, Decision]:
        """Commit in the first forward, record in the second."""
        first = int(view.step[0]) == 0
        if not first:
            probabilities = view.token_probability.clone(), view.leave_one_out.clone()
            self.seen += zip(view.tokens.clone(), *probabilities, strict=True)
        hold = torch.full((view.masked.shape[0],), first)
        return state, Decision(view.masked.clone() if first else view.masked & False, hold=hold)


def decode(model: Model, examples: Sequence[Example], decoder: Any, **way: Any) -> list[Row]:
    """Decode examples in batches and with keys as the tables do; `share` as in `score`."""
    length = LENGTHS[examples[0].task]
    share, steps, seed = way.pop("share", None), way.pop("steps", None), way.pop("seed", 0)
    fixed: dict[str, Any] = {"gen_length": length, "return_trajectory": True}
    fixed |= {"block_length": way.pop("block_length", None)}
    fixed |= {"steps": steps if share is None else -(-length // share), "seed": seed}
    fixed |= {"decoder": decoder, "decoder_options": way or None}
    rows: list[Row] = []
    for begin in range(0, len(examples), BATCH):
        batch = examples[begin : begin + BATCH]
        prompts = [[{"role": "user", "content": example.prompt}] for example in batch]
        out = dlm.generate(model, prompts, row_keys=range(begin, begin + len(batch)), **fixed)
        parts = (out.texts or [], out.forwards, out.trajectory or [])
        for example, text, forwards, path in zip(batch, *parts, strict=True):
            right = TASKS[example.task].is_correct(example.prompt, text)
            rows.append(Row(example, text, right, forwards, path))
    return rows


def tell(model: Model, examples: Sequence[Example], decoder: Any, **way: Any) -> list[Row]:
    """Print percent right, mean forwards and tokens taken back."""
    rows = decode(model, examples, decoder, **way)
    share, forwards = mean(row.right for row in rows), mean(row.forwards for row in rows)
    taken = sum(len(row.trajectory.remasks) for row in rows)
    name = f"{examples[0].task} ({len(rows)}), {decoder} {way}"
    print(f"  {name}: {share:.1%} in {forwards:.2f} forwards, {taken} taken back", flush=True)
    return rows


def below(values: Sequence[float], bar: float) -> str:
    """Median, and the share of values below a bar."""
    share = mean(value < bar for value in values)
    return f"median {median(values):.4f}, below {bar} in {share:.1%} of {len(values)}"


def counts(commits: Sequence[Change]) -> tuple[int, ...]:
    """Commits of each forward."""
    of = Counter(commit.step for commit in commits)
    return tuple(of[step] for step in range(max(of, default=-1) + 1))


def unsure(model: Model, puzzles: Sequence[Example], decoder: Any, **way: Any) -> None:
    """Print in how many rows one forward commits two or more unsure tokens."""
    rows = decode(model, puzzles, decoder, **way)
    low = [[c for c in row.trajectory.commits if c.confidence < SURE] for row in rows]
    hit = [row for row, some in zip(rows, low, strict=True) if max(counts(some), default=0) > 1]
    wrong, all_wrong = (sum(not row.right for row in some) for some in (hit, rows))
    told = f"two or more unsure tokens in one forward in {len(hit)} rows, {wrong} of them wrong"
    print(f"  {decoder} {way}: {told}; of all {len(rows)} rows {all_wrong} wrong", flush=True)


def sizes(model: Model, examples: Sequence[Example], decoder: str, **way: Any) -> None:
    """Print the commonest pattern of tokens a forward."""
    rows = decode(model, examples, decoder, **way)
    (pattern, count), *_ = Counter(counts(row.trajectory.commits) for row in rows).most_common(1)
    name = f"{decoder} {way}, {examples[0].task}"
    print(f"  {name}: tokens of each forward {list(pattern)} in {count} of {len(rows)} rows")


def conflicts(puzzle: str, grid: str) -> list[int]:
    """Cells that were to be filled and repeat the digit of a row, column or box."""
    units = [(i // 4, 4 + i % 4, 8 + i // 8 * 2 + i % 4 // 2) for i in range(GRID)]
    counts = Counter((grid[i], unit) for i in range(GRID) for unit in units[i])
    clash = [any(counts[grid[i], unit] > 1 for unit in units[i]) for i in range(GRID)]
    return [i for i in range(GRID) if puzzle[i] == "0" and clash[i]]


@torch.inference_mode()
def doubts(model: Model, puzzles: Sequence[Example]) -> list[float]:
    """Print how probable the model finds conflicting digits; return what their shadows say."""
    probe = Probe()
    rows = decode(model, puzzles, probe)
    found: list[tuple[float, float, float]] = []
    for row, (tokens, seen, shadow) in zip(rows, probe.seen, strict=True):
        prompt = encode_prompts(model, [{"role": "user", "content": row.example.prompt}])[0]
        puzzle = row.example.prompt.removeprefix("Sudoku: ")
        for cell in conflicts(puzzle, row.text.ljust(GRID)):  # none where it is right
            whole = torch.cat([torch.tensor(prompt), tokens])
            whole[len(prompt) + cell] = model.spec.mask_id
            law = model.network(whole[None]).logits[0, len(prompt) + cell].float().softmax(-1)
            found.append((float(seen[cell]), float(shadow[cell]), float(law[tokens[cell]])))
    visible, shadows, alone = (list(values) for values in zip(*found, strict=True))
    print(f"  wrong grids decoded in one forward: {sum(not row.right for row in rows)}")
    print(f"  probability of a conflicting digit that is seen: {below(visible, 0.4)}")
    print(f"  the same digit where it alone is masked: {below(alone, 0.4)}", flush=True)
    return shadows


def edits(model: Model, words: Sequence[Example]) -> None:
    """Print what editing does to word problems, and one answer that it spoils."""
    plain = tell(model, words, "block_refinement")
    edited = tell(model, words, "block_refinement", editing_threshold=0.9)
    both = [(a, b) for a, b in zip(plain, edited, strict=True) if b.trajectory.edits]
    before, after = sum(a.right for a, _ in both), sum(b.right for _, b in both)
    print(f"  rows edited {len(both)}: right without editing {before}, with it {after}")
    a, b = next((a, b) for a, b in both if a.right and not b.right)
    print(f"  {a.example.prompt!r}: {a.text!r} turns into {b.text!r}", flush=True)


def orders(model: Model, puzzles: Sequence[Example], words: Sequence[Example]) -> None:
    """Print what belongs to the bullets on budgets and the order of commits."""
    print("Adaptive beats a fixed budget")
    rows = decode(model, puzzles, "low_confidence", steps=1)
    sure = mean(sum(c.confidence > SURE for c in row.trajectory.commits) for row in rows)
    print(f"  tokens of confidence above {SURE} after the prompt: {sure:.1f}")
    tell(model, words, "entropy_threshold", threshold=0.1)
    tell(model, words, "low_confidence")
    tell(model, words, "low_confidence", share=2)
    print("On sudoku random order beats confidence")
    unsure(model, puzzles, "low_confidence", steps=3)
    unsure(model, puzzles, "random", steps=3, seed=0)
    unsure(model, puzzles, "dilated")
    unsure(model, puzzles, "threshold", threshold=0.9)
    print("On word problems confidence wins (low_confidence, one token a forward: above)")
    tell(model, words, "random")
    tell(model, words, "low_confidence", share=8)
    tell(model, words, "random", share=8)
    print("dream differs from entropy by rounding (low_confidence: above)")
    for decoder in ("dream", "entropy"):
        sizes(model, puzzles[:100], decoder, steps=10)
        sizes(model, puzzles[:100], decoder, steps=3)
        unsure(model, puzzles, decoder, steps=10)
    sizes(model, words[:100], "dream", share=1)
    tell(model, words, "dream", share=1)


def takes_back(model: Model, puzzles: Sequence[Example], words: Sequence[Example]) -> None:
    """Print what belongs to the bullets on decoders that take tokens back or edit them."""
    print("Committed tokens are hardly ever doubted")
    shadows = doubts(model, puzzles)
    sizes(model, puzzles[:100], "remdm", share=1)
    sizes(model, words[:100], "remdm", share=1)
    print("Editing does harm")
    edits(model, words)
    print("wino takes little back")
    print(f"  probability of a conflicting digit by its shadow: {below(shadows, SURE)}")
    sizes(model, puzzles[:100], "wino", threshold=0.6)
    for back in (0.1, 0.3, 0.5, 0.7, 0.9):
        tell(model, puzzles[:100], "wino", threshold=0.6, threshold_back=back)
    print("saber does not accelerate")
    rows = decode(model, puzzles[:100], "saber", n=2)
    commits = [commit for row in rows for commit in row.trajectory.commits]
    early = mean(commit.confidence for commit in commits if commit.step < 8)
    late = mean(commit.confidence for commit in commits if commit.step >= 8)
    print(f"  mean confidence of commits: in 8 forwards {early:.6f}, later {late:.4f}", flush=True)


def curves(model: Model, puzzles: Sequence[Example], words: Sequence[Example]) -> None:
    """Print what belongs to the bullets on `local_leap` and its like, and on `pc_sampler`."""
    print("local_leap, credit and frechet are other points of one curve")
    for threshold in (0.75, 0.8, 0.85, 0.9):
        tell(model, puzzles, "threshold", threshold=threshold)
    for decoder in ("local_leap", "credit", "hierarchical", "frechet"):
        tell(model, puzzles, decoder)
    tell(model, puzzles, "frechet", delta=0.5)
    tell(model, words, "frechet", delta=0.5)
    tell(model, words, "threshold", threshold=0.8)
    print("pc_sampler beats its baselines (low_confidence with 8 tokens a forward: above)")
    tell(model, words, "pc_sampler", share=8)
    tell(model, words, "left_to_right", share=8)
    stops = background(model)[list(model.spec.stop_ids)].sum()
    print(f"  probability of a stop token on a canvas of masks: {float(stops):.4f}")


def later(model: Model, puzzles: Sequence[Example], words: Sequence[Example]) -> None:
    """Print what belongs to the bullets on `certainty_prior`, `mean_field` and `prophet`."""
    print("certainty_prior is the best order (pc_sampler with 8 tokens a forward: above)")
    for share in (4, 8):
        tell(model, words, "certainty_prior", share=share)
    print("mean_field keeps like predictions apart (entropy_threshold: above)")
    tell(model, words, "mean_field")
    tell(model, words, "mean_field", threshold=0.97)
    unsure(model, puzzles, "mean_field")
    print("prophet averages what is sure")
    unsure(model, puzzles, "prophet")
    unsure(model, words, "prophet")
    tell(model, words, "prophet")


def ahead(model: Model, puzzles: Sequence[Example], words: Sequence[Example]) -> None:
    """Print what belongs to the bullet on `lopa`."""
    print("lopa (threshold 0.8 and 0.9: above)")
    experiments = LoPA(score="entropy", alpha=0.0, share=1.0)
    for decoder in (LoPA(), LoPA(threshold=0.8), experiments):
        tell(model, words, decoder)
    for decoder in (LoPA(), experiments):
        unsure(model, puzzles, decoder)
        unsure(model, words, decoder)


def windows(model: Model, puzzles: Sequence[Example], words: Sequence[Example]) -> None:
    """Print what belongs to the bullet on `deferred_commitment`."""
    for examples in (puzzles, words):
        for size in (4, 8, 16):
            print(f"blocks, and windows of {size}")
            tell(model, examples, "threshold", block_length=size)
            tell(model, examples, DeferredCommitment(window=size))


def main() -> None:
    """Print every figure, bullet by bullet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sudoku", type=Path, required=True, help="CSV of the published puzzles")
    path, model = parser.parse_args().sudoku, dlm.load()
    puzzles, words = held_out("sudoku", 500, path), held_out("word_problems", 400, None)[100:]
    for bullets in (orders, takes_back, curves, later, ahead, windows):
        bullets(model, puzzles, words)


if __name__ == "__main__":
    main()
