"""Transfers between the host and the device, with as little waiting as possible."""

from collections.abc import Sequence

import torch
from torch import Tensor


def send(values: Sequence[int] | Tensor, device: torch.device) -> Tensor:
    """Copy integers, as int64 [n], or a tensor to the device, without waiting for the copy."""
    made = values if isinstance(values, Tensor) else torch.tensor(values, dtype=torch.int64)
    if device.type == "cuda":
        made = made.pin_memory()
    return made.to(device, non_blocking=True)


def check(device: torch.device) -> None:
    """Check that a device still works: after some errors a GPU is unusable for the process.

    Raises:
        RuntimeError: it is unusable.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Mailbox:
    """Brings the report of each step to the host."""

    def __init__(self) -> None:
        self.buffer: Tensor | None = None

    def read(self, report: Tensor) -> list[int]:
        """The values of an int64 [n].

        On a GPU the host waits only for the event after this copy, not for all queued work, which
        continues.
        """
        if report.device.type != "cuda":
            values: list[int] = report.tolist()
            return values
        if self.buffer is None or self.buffer.shape != report.shape:
            self.buffer = torch.empty(report.shape, dtype=report.dtype, pin_memory=True)
        self.buffer.copy_(report, non_blocking=True)
        torch.cuda.current_stream(report.device).record_event().synchronize()
        values = self.buffer.tolist()
        return values
