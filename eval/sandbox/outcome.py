"""The limits of a check, and how it ended."""

from dataclasses import dataclass

from dlm.options import integer, number


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one check.

    A program that computes runs out of CPU time first. The wall clock stops a program that waits,
    or that gets less than a third of a core.
    """

    cpu_seconds: int = 5  # per process
    wall_seconds: float = 15.0  # for all processes together
    memory_bytes: int = 2**30  # address space per process; all together may use twice that
    processes: int = 64  # at once, including threads
    output_bytes: int = 2**16  # read from a sandbox
    file_bytes: int = 2**24  # of a file, and of each temporary folder

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: a number is out of range; the message names it.
        """
        integer("cpu_seconds", self.cpu_seconds, least=1, most=3600)
        number("wall_seconds", self.wall_seconds, least=1.0, most=86400.0)
        integer("memory_bytes", self.memory_bytes, least=2**26, most=2**63 - 1)
        integer("processes", self.processes, least=4)
        integer("output_bytes", self.output_bytes, least=2**10, most=2**63 - 1)
        integer("file_bytes", self.file_bytes, least=2**12, most=2**63 - 1)
        if self.wall_seconds < self.cpu_seconds:
            raise ValueError(
                f"wall_seconds must be >= cpu_seconds = {self.cpu_seconds}, got {self.wall_seconds}"
            )


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a check ended."""

    passed: bool
    kind: str  # passed, failed, error, timed out, out of memory, killed, unreadable
    detail: str  # one line; "" if there are no details
    seconds: float  # wall clock
