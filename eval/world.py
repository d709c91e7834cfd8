"""The processes of one run: alone, or side by side under torchrun or `accelerate launch`."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Self

PATIENCE = timedelta(days=7)  # a process waits this long for the slowest one


@dataclass(frozen=True, slots=True)
class World:
    """Which process this is, of how many."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @classmethod
    def of(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """The world that a launcher describes in its variables; this process alone without one."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        if "WORLD_SIZE" not in environment:
            return cls()
        return cls(*(int(environment.get(name, "0")) for name in names))

    def join(self) -> None:
        """Meet the other processes. Nothing but waiting goes over this link, so the CPU does."""
        if self.size > 1:
            from torch import distributed

            distributed.init_process_group("gloo", timeout=PATIENCE)

    def leave(self) -> None:
        """Say goodbye."""
        if self.size > 1:
            from torch import distributed

            distributed.destroy_process_group()

    def wait(self) -> None:
        """Until every process has come here."""
        if self.size > 1:
            from torch import distributed

            distributed.barrier()

    def device(self, name: str | None) -> str | None:
        """The device of this process: its own one where each has several to choose from."""
        return f"cuda:{self.local_rank}" if name == "cuda" and self.size > 1 else name
