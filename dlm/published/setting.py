"""The type of a published setting."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

INSTRUCT = "LLaDA-8B-Instruct"


@dataclass(frozen=True, slots=True)
class Published:
    """A decoder setting from a paper or its code, and the results reported for it.

    Tokens per forward pass are as reported, or the generation length divided by the reported
    number of forward passes.
    """

    task: str  # of `dlm.eval`; other tasks are described in words
    preset: str | None  # name in `dlm eval`; None if its lengths are unknown
    decoder: str
    decoder_options: Mapping[str, Any]
    options: Mapping[str, Any]  # of `dlm.generate` or `dlm.infill`, besides the decoder
    source: str  # paper, weights, solved examples in the prompt
    reported: str = ""  # accuracy in percent and forward passes of this setting, then of others
    tokens_per_forward: float | None = None  # None if not reported
    template: str | None = None  # of the task, if the paper's prompt is one of them


class Paper(NamedTuple):
    """What the settings of a paper have in common."""

    preset: str | None
    decoder: str
    source: str

    def on(
        self,
        task: str,
        decoder_options: Mapping[str, Any],
        options: Mapping[str, Any],
        reported: str = "",
        rate: float | None = None,
        *,
        note: str = "",
        template: str | None = None,
    ) -> Published:
        """The setting for a task; `rate` is tokens per forward pass, `note` extends the source."""
        source = f"{self.source}, {note}" if note else self.source
        return Published(
            task,
            self.preset,
            self.decoder,
            decoder_options,
            options,
            source,
            reported,
            rate,
            template,
        )


def lengths(gen_length: int, block_length: int | None = None) -> dict[str, int | None]:
    """Options for the generation length and the block length; None for a single block."""
    return {"gen_length": gen_length, "block_length": block_length}
