"""Optional records of a job's forward passes, beyond the tokens of its rows."""

from typing import Any

import torch

from dlm.job import Job
from dlm.runtime import Step
from dlm.trajectory import Recorder, Written, mark, standing


class Notes:
    """Collects trajectories, orders and most likely tokens, where the options request them."""

    def __init__(self, job: Job) -> None:
        """Take the job, before its first forward pass."""
        settings, top = job.settings, job.settings.return_top_tokens
        self.spans = job.spans
        self.recorder = Recorder(job.spans) if settings.return_trajectory else None
        self.written = Written(top) if top else None
        self.order = torch.full_like(job.canvas.tokens, -1) if settings.return_order else None

    def add(self, step: Step) -> None:
        """Record a forward pass."""
        if self.order is not None:
            mark(self.order, step)
        if self.recorder is not None:
            self.recorder.add(step)
        if self.written is not None:
            self.written.add(step, range(len(self.spans)))

    def of(self, row: int, decoded: list[int], tokens: list[int]) -> dict[str, Any]:
        """The recorded fields of a finished row's generation, by name; call once per row.

        Args:
            row: its index.
            decoded: its span as it was decoded.
            tokens: its span as it is returned, which a text of `stop` may have cut.
        """
        made: dict[str, Any] = {}
        begin, stop = self.spans[row]
        if self.recorder is not None:
            made["trajectory"] = [self.recorder.trajectory(row)]
        if self.order is not None:
            made["order"] = [standing(self.order[row, begin:stop].tolist(), decoded, tokens)]
        if self.written is not None:
            made["top_tokens"] = [self.written.top_tokens(row, begin, tokens)]
            self.written.forget(row)
        return made
