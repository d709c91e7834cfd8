"""Trajectories on disk, written batch by batch, so that an interrupted run can continue."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dlm.decoders.artefact import canonical

Report = Callable[[str, int, int], None]
"""Called with the name of the current part, the prompts done and their total."""


@dataclass(frozen=True, slots=True)
class Trajectory:
    """How one prompt was decoded, and what would have gone wrong on the way.

    Entry t of `wrong` describes the state after t committed tokens. Blocks are filled in order, and
    each state has one mask less than the one before.
    """

    tokens: list[int]  # [G] the generated tokens
    order: list[int]  # [G] tokens committed before the forward pass that committed this one
    wrong: list[list[int]]  # [G] ranks, from 0, where the arg max is not the teacher's token


@dataclass(frozen=True, slots=True)
class Shape:
    """What all trajectories of one plan have in common."""

    starts: tuple[tuple[int, ...], ...]  # for each block, its part of `order`, sorted
    masks: tuple[int, ...]  # [G] masks of the current block in the state of each `wrong`
    vocab: int
    measured: bool  # whether mistakes were counted

    @classmethod
    def of(cls, counts: Sequence[Sequence[int]], vocab: int, *, measured: bool) -> "Shape":
        """From the number of tokens that each forward pass of each block reveals."""
        starts: list[tuple[int, ...]] = []
        masks: list[int] = []
        done = 0
        for block in counts:
            found: list[int] = []
            for count in block:
                found += [done] * count
                done += count
            starts.append(tuple(found))
            masks += range(len(found), 0, -1)
        return cls(tuple(starts), tuple(masks), vocab, measured)

    def fault(self, row: object) -> str | None:
        """What is wrong with a row of a file; None if it is valid."""
        if not isinstance(row, dict) or set(row) != {"tokens", "order", "wrong"}:
            return "not a trajectory"
        tokens, order, wrong = row["tokens"], row["order"], row["wrong"]
        length = len(self.masks)
        for name, values in (("tokens", tokens), ("order", order)):
            if not is_ints(values) or len(values) != length:
                return f"{name} must be {length} ints"
        if not all(0 <= token < self.vocab for token in tokens):
            return f"tokens must be ids below {self.vocab}"
        begin = 0
        for block in self.starts:
            if sorted(order[begin : begin + len(block)]) != list(block):
                return "order must be that of the plan"
            begin += len(block)
        masks = self.masks if self.measured else ()
        if not isinstance(wrong, list) or len(wrong) != len(masks):
            return f"wrong must be {len(masks)} lists"
        if not all(is_ranks(ranks, most) for ranks, most in zip(wrong, masks, strict=True)):
            return "wrong must be ascending ranks of masks"
        return None


def is_ints(values: object) -> bool:
    """Whether the value is a list of ints; bools do not count."""
    return isinstance(values, list) and all(type(value) is int for value in values)


def is_ranks(values: object, most: int) -> bool:
    """Whether the value is a list of strictly ascending ints in [0, `most`)."""
    if not isinstance(values, list) or not is_ints(values):
        return False
    return values == sorted(set(values)) and all(0 <= value < most for value in values)


@dataclass(frozen=True, slots=True)
class Ledger:
    """A file of trajectories: a line of facts, then one line for each prompt.

    The caller keeps other runs out of the folder, with `alone`.
    """

    path: Path
    facts: Mapping[str, Any]  # what the trajectories depend on
    shape: Shape

    def fill(
        self,
        prompts: Sequence[Sequence[int]],
        batch_size: int,
        work: Callable[[int, int], list[Trajectory]],
        report: Callable[[int, int], None],
    ) -> list[Trajectory]:
        """The trajectories of all prompts; `work` produces those in a range of indices.

        Only the whole batches of an earlier run are kept. So the batches are the same as without
        the interruption, and so are the network's outputs.

        Raises:
            ValueError: the file belongs to another run or is damaged.
        """
        found = self.read(batch_size, len(prompts))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        report(len(found), len(prompts))
        for begin in range(len(found), len(prompts), batch_size):
            made = work(begin, min(begin + batch_size, len(prompts)))
            self.add(made)
            found += made
            report(len(found), len(prompts))
        return found

    def read(self, batch_size: int, total: int) -> list[Trajectory]:
        """Read the whole batches that an earlier run has left, and cut the rest off the file.

        Raises:
            ValueError: the file belongs to another run, or is damaged before its last line.
        """
        if not self.path.exists():
            return []
        lines = self.path.read_bytes().split(b"\n")[:-1]  # a line without a newline is incomplete
        if not lines:
            self.path.unlink()
            return []
        self.check_facts(self.parsed(lines[0], 1))
        found = []
        for number, line in enumerate(lines[1:], 2):
            row = self.parsed(line, number)
            late = number - 1 > total
            fault = f"more rows than the {total} prompts" if late else self.shape.fault(row)
            if fault is not None:
                raise self.damage(number, fault)
            found.append(Trajectory(**row))
        whole = len(found) if len(found) == total else len(found) - len(found) % batch_size
        kept = b"".join(line + b"\n" for line in lines[: whole + 1])
        with self.path.open("r+b") as file:
            file.truncate(len(kept))
        return found[:whole]

    def parsed(self, line: bytes, number: int) -> Any:
        """Parse a line of JSON."""
        try:
            return json.loads(line)
        except ValueError as error:
            raise self.damage(number, str(error)) from None

    def damage(self, number: int, why: str) -> ValueError:
        """The error for a line that no run can have written."""
        return ValueError(f"{str(self.path)!r} is damaged at line {number} ({why}): delete it")

    def check_facts(self, facts: object) -> None:
        """Refuse the file of another run."""
        if not isinstance(facts, dict):
            raise self.damage(1, "not the facts of a run")
        wanted = json.loads(canonical(self.facts))
        names = sorted(set(facts) | set(wanted))
        other = [n for n in names if n not in facts or n not in wanted or facts[n] != wanted[n]]
        if other:
            raise ValueError(
                f"{str(self.path)!r} must be of this model, these prompts and these options: "
                f"{', '.join(other)} differ; give another folder or delete it"
            )

    def add(self, trajectories: Sequence[Trajectory]) -> None:
        """Append a batch; in a new file, write the facts first."""
        head = [] if self.path.exists() else [self.facts]
        rows = [*head, *map(asdict, trajectories)]
        with self.path.open("ab") as file:
            file.write("".join(canonical(row) + "\n" for row in rows).encode())
            file.flush()
            os.fsync(file.fileno())
