"""Trajectories on disk: written batch by batch, so that a run that was stopped goes on."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dlm.decoders.artefact import canonical

Report = Callable[[str, int, int], None]
"""Called with what is under way, how many prompts are done, and of how many."""


@dataclass(frozen=True, slots=True)
class Trajectory:
    """How one prompt was decoded, and what would have gone wrong on the way.

    Entry t of `wrong` is of the state after t committed tokens: block by block, one mask less at
    a time.
    """

    tokens: list[int]  # [G] the answer
    order: list[int]  # [G] tokens of the row committed before the forward that committed this one
    wrong: list[list[int]]  # [G] ranks, from 0, whose arg max is not the teacher's answer


@dataclass(frozen=True, slots=True)
class Ledger:
    """A file of trajectories: a line of facts, then one for each prompt."""

    path: Path
    facts: Mapping[str, Any]  # what the trajectories depend on

    def fill(
        self,
        prompts: Sequence[Sequence[int]],
        batch_size: int,
        work: Callable[[int, int], list[Trajectory]],
        report: Callable[[int, int], None],
    ) -> list[Trajectory]:
        """The trajectories of all prompts; `work` makes those from one index to another.

        Only whole batches are kept of an earlier run, so that the batches are the same ones and
        what comes out of the network is too.

        Raises:
            ValueError: the file is of another run.
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
        """What whole batches an earlier run has left; the rest is cut off the file.

        Raises:
            ValueError: the file is of another run, or is damaged in front of its last line.
        """
        if not self.path.exists():
            return []
        lines = self.path.read_bytes().split(b"\n")[:-1]  # what has no line end is not whole
        if not lines:
            self.path.unlink()
            return []
        try:
            facts, *rows = map(json.loads, lines)
            found = [Trajectory(**row) for row in rows]
        except (ValueError, TypeError) as error:
            raise ValueError(f"{str(self.path)!r} is damaged, delete it: {error}") from None
        if facts != json.loads(canonical(self.facts)):
            names = sorted(set(facts) | set(self.facts)) if isinstance(facts, dict) else []
            wanted = json.loads(canonical(self.facts))
            other = [name for name in names if facts.get(name) != wanted.get(name)]
            raise ValueError(
                f"{str(self.path)!r} must be of this model, these prompts and these options: "
                f"{', '.join(other) or 'its facts'} differ; give another folder or delete it"
            )
        whole = len(found) if len(found) >= total else len(found) - len(found) % batch_size
        kept = b"".join(line + b"\n" for line in lines[: whole + 1])
        with self.path.open("r+b") as file:
            file.truncate(len(kept))
        return found[:whole]

    def add(self, trajectories: Sequence[Trajectory]) -> None:
        """Append a batch, and the facts in front of the first one."""
        head = [] if self.path.exists() else [self.facts]
        rows = [*head, *map(asdict, trajectories)]
        with self.path.open("ab") as file:
            file.write("".join(canonical(row) + "\n" for row in rows).encode())
            file.flush()
            os.fsync(file.fileno())
