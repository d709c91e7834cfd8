"""What a published setting is."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

INSTRUCT = "LLaDA-8B-Instruct"


@dataclass(frozen=True, slots=True)
class Published:
    """A setting of a paper or its code, and what it was measured to give.

    Tokens per forward are those reported, or the generation length over the forwards reported.
    """

    task: str  # of `dlm.eval`; in words what is none of them
    preset: str | None  # its name there; None where its lengths are not known
    decoder: str
    decoder_options: Mapping[str, Any]
    options: Mapping[str, Any]  # of `dlm.generate` or `dlm.infill`, beside the decoder
    source: str  # paper, weights, solved examples in the prompt
    reported: str = ""  # accuracy in percent and forwards of this setting, then of others
    tokens_per_forward: float | None = None  # None: not reported
    template: str | None = None  # of the task, where the paper's prompt is one of them


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
        """Its setting for a task; `rate` are tokens per forward, `note` goes with the source."""
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
    """Tokens to decode and tokens of a block, one block over all if None."""
    return {"gen_length": gen_length, "block_length": block_length}
