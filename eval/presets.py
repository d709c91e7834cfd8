"""The presets that papers report, from the table of `dlm.published`."""

from dlm.eval.task import Preset
from dlm.published import PUBLISHED


def published(task: str) -> tuple[Preset, ...]:
    """The published settings of a task, the default first."""
    return tuple(
        Preset(
            each.preset,
            {
                **each.options,
                "decoder": each.decoder,
                "decoder_options": dict(each.decoder_options),
            },
            each.source,
            each.reported,
            each.template,
        )
        for each in PUBLISHED
        if each.task == task and each.preset is not None
    )
