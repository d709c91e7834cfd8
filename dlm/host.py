"""What passes between the host and the device, never waiting longer than it must."""

from collections.abc import Sequence

import torch
from torch import Tensor


def send(values: Sequence[int] | Tensor, device: torch.device) -> Tensor:
    """Whole numbers, as int64 [n], or a tensor, on the device, without waiting for the copy."""
    made = values if isinstance(values, Tensor) else torch.tensor(values, dtype=torch.int64)
    if device.type == "cuda":
        made = made.pin_memory()
    return made.to(device, non_blocking=True)


def check(device: torch.device) -> None:
    """Find out whether a device still works: after some errors a GPU does no more for the process.

    Raises:
        RuntimeError: it does not.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Mailbox:
    """Brings the report of each step to the host."""

    def __init__(self) -> None:
        self.buffer: Tensor | None = None

    def read(self, report: Tensor) -> list[int]:
        """Values of an int64 [n].

        On a GPU the host waits for the event that ends this copy, not for all that was asked of the
        device: work queued behind it goes on.
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
