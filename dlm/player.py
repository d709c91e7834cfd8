"""An HTML page that plays back a generation, forward pass by forward pass.

Shapes: F forward passes, G generated span.
"""

import json
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any, Final

import torch

from dlm.given import message_text
from dlm.models.model import Model
from dlm.options import names_checked
from dlm.outputs import Generation
from dlm.prompts import check_model, tokenizer_of
from dlm.reading import vocabulary_of
from dlm.trajectory import Trajectory

HEIGHT: Final = "32rem"
"""Height of the page in a notebook."""
SPECIAL: Final = "\u00b7"
PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
<p class="key"><span class="token new">written</span> by this forward,
<span class="token edited">changed</span> by it, <span class="token back">taken back</span>, and
<span class="token aged" style="--age: 80%">written a few forwards ago</span></p>
<main id="rows"></main>
<script type="application/json" id="data">{data}</script>
<script>{script}</script>
</body>
</html>
"""


class Page(str):
    """HTML as a string; a notebook shows it in a frame."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        style = f"width: 100%; height: {HEIGHT}; border: 0"
        return f'<iframe srcdoc="{escape(self)}" style="{style}"></iframe>'


@names_checked
def playback(model: Model, out: Generation, prompts: Sequence[Any] | None = None) -> Page:
    """An HTML page that plays a generation step by step: tokens written, changed and taken back.

    The page is one self-contained file that needs no network. A notebook displays it as the value
    of a cell. Elsewhere:

        out = dlm.generate(model, prompts, return_trajectory=True)
        Path("playback.html").write_text(dlm.playback(model, out, prompts))

    Args:
        model: the model that generated; its tokenizer gives the text of each token.
        out: a generation made with `return_trajectory`.
        prompts: titles of the rows, texts or chats; their numbers by default.

    Raises:
        ValueError: `out` has no trajectories, the number of prompts is not that of rows, or the
            model has no tokenizer.
    """
    check_model(model)
    if not isinstance(out, Generation) or out.trajectory is None:
        raise ValueError(
            "out must be what generate or infill gave with return_trajectory=True, got "
            f"{'one without' if isinstance(out, Generation) else repr(out)}"
        )
    titles = [f"row {number}" for number in range(len(out.tokens))]
    if prompts is not None:
        several = [prompts] if isinstance(prompts, str) else prompts
        if len(several) != len(titles):
            raise ValueError(
                f"prompts must be one for each of {len(titles)} rows, got {len(several)}"
            )
        titles = [title_of(prompt) for prompt in several]
    rows = [
        {"title": title, **frames(trajectory, tokens)}
        for title, trajectory, tokens in zip(titles, out.trajectory, out.tokens, strict=True)
    ]
    data = {"mask": model.spec.mask_id, "pieces": pieces(model, rows), "rows": rows}
    folder = files("dlm") / "assets" / "playback"
    return Page(
        PAGE.format(
            title="Forward by forward",
            style=(folder / "playback.css").read_text(),
            data=json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),
            script=(folder / "playback.js").read_text(),
        )
    )


def title_of(prompt: Any) -> str:
    """A prompt as a title: a text, or the last message of a chat."""
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, Sequence) and prompt and isinstance(prompt[-1], Mapping):
        return message_text(prompt[-1].get("content"), "a chat message")
    return str(prompt)


def frames(trajectory: Trajectory, tokens: Sequence[int]) -> dict[str, Any]:
    """The row before the first forward pass, and each pass's changes: position, token and p(token).

    The last one includes what was filled in after a stop token.
    """
    canvases = torch.cat((trajectory.canvases, torch.tensor([tokens])))
    sure = {
        (change.step, change.position): round(change.confidence, 4)
        for change in (*trajectory.commits, *trajectory.edits)
        if change.confidence == change.confidence  # NaN where it was not measured
    }
    made: list[list[list[Any]]] = [[] for _ in canvases[1:]]
    for step, place in (canvases[1:] != canvases[:-1]).nonzero().tolist():
        token = int(canvases[step + 1, place])
        made[step].append([place, token, sure.get((step, place))])
    return {"start": canvases[0].tolist(), "frames": made}


def pieces(model: Model, rows: Sequence[Mapping[str, Any]]) -> dict[int, tuple[str, str]]:
    """The text and name of every token that occurs; special ones have a dot as text."""
    tokenizer = tokenizer_of(model, "a playback")
    met = {token for row in rows for token in row["start"]}
    met |= {token for row in rows for frame in row["frames"] for _, token, _ in frame}
    special = vocabulary_of(tokenizer).silent | {*model.spec.stop_ids, model.spec.mask_id}
    found = {}
    for token in sorted(met):
        name = str(tokenizer.convert_ids_to_tokens(token))
        text = tokenizer.decode([token], clean_up_tokenization_spaces=False)
        found[token] = (SPECIAL if token in special else text or name, name)
    return found
