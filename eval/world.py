"""The processes of one run: alone, or several under torchrun or `accelerate launch`."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Self

PATIENCE = timedelta(days=7)  # how long a process waits for the slowest one


@dataclass(frozen=True, slots=True)
class World:
    """The index of this process, and the number of processes."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @classmethod
    def of(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """The processes as a launcher describes them in the environment; one without a launcher.

        Raises:
            ValueError: a variable is missing, or not a number.
        """
        if "WORLD_SIZE" not in environment:
            return cls()
        found = []
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
            text = environment.get(name, "")
            if not text.isdecimal():
                raise ValueError(f"{name} must be an int >= 0 beside WORLD_SIZE, got {text!r}")
            found.append(int(text))
        return cls(*found)

    def join(self) -> None:
        """Join the other processes; the link only synchronises them, so it uses the CPU (gloo)."""
        if self.size > 1:
            from torch import distributed

            distributed.init_process_group("gloo", timeout=PATIENCE)

    def leave(self) -> None:
        """Leave the process group."""
        if self.size > 1:
            from torch import distributed

            distributed.destroy_process_group()

    def wait(self) -> None:
        """Wait until every process has called this."""
        if self.size > 1:
            from torch import distributed

            distributed.barrier()

    def agree(self, settings: Mapping[str, Any]) -> None:
        """Make sure that every process runs with the same settings.

        Raises:
            ValueError: the settings differ; raised in every process, naming the first difference.
        """
        if self.size == 1:
            return
        from torch import distributed

        every: list[Any] = [None] * self.size
        distributed.all_gather_object(every, dict(settings))
        for rank, other in enumerate(every):
            for name, value in every[0].items():
                if other.get(name) != value:
                    raise ValueError(
                        f"processes must run with one {name}, got {value!r} in process 0 and "
                        f"{other.get(name)!r} in process {rank}"
                    )

    def first(self, act: Callable[[], object]) -> None:
        """Run `act` in process 0 while the others wait.

        Raises:
            ValueError: `act` raised one; raised again in every process.
        """
        told = None
        if not self.rank:
            try:
                act()
            except ValueError as error:
                told = str(error)
        if self.size > 1:
            from torch import distributed

            said = [told]
            distributed.broadcast_object_list(said)
            (told,) = said
        if told is not None:
            raise ValueError(told)

    def check_spread(self, facts: Mapping[str, Any]) -> None:
        """Refuse to spread a model over devices in each of several processes.

        Args:
            facts: options of `dlm.load`.

        Raises:
            ValueError: there are several processes.
        """
        for name, one in (("device_map", None), ("tensor_parallel_size", 1)):
            found = facts.get(name, one)
            if found != one and self.size > 1:
                raise ValueError(
                    f"{name} goes with one process, got {found!r} in {self.size}: each of several "
                    "has a device of its own"
                )

    def device(self, name: str | None) -> str | None:
        """The device of this process: its own GPU if it can see several."""
        if name != "cuda" or self.size == 1:
            return name
        import torch

        return f"cuda:{self.local_rank}" if torch.cuda.device_count() > self.local_rank else name
