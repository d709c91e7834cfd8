"""What a streamer is told is final and stays so, for every decoder; drafts stay on one line."""

import io
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from transformers import TextStreamer

import dlm
from dlm import TextDiffusionStreamer
from dlm.decoders import DECODERS
from dlm.generation import finish
from dlm.huggingface.streamers import Follower, check
from dlm.job import generation_job
from dlm.models.model import Model
from dlm.runtime import Step
from dlm.settings import Settings

MASK, EOS, EOT = 7, 6, 5
LENGTH = 24


class Listener:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.final: list[int] = []
        self.drafts: list[list[int]] = []

    def put(self, value: torch.Tensor) -> None:
        assert value.ndim == 1
        assert value.dtype == torch.int64
        self.final += value.tolist()

    def put_draft(self, value: torch.Tensor) -> None:
        assert value.ndim == 2
        self.drafts.append(value[0].tolist())

    def end(self) -> None:
        raise AssertionError("the follower does not end a stream")


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("block_length", [None, 7])
def test_what_is_final_is_never_taken_back(
    toy: Callable[..., Model], name: str, seed: int, block_length: int | None
) -> None:
    model = toy(seed, 1.0)
    options = Settings(
        decoder=name, gen_length=LENGTH, block_length=block_length, temperature=1.0, seed=seed
    )
    job = generation_job(model, [[1, 2, 3]], options)
    listener = Listener()
    follow = Follower(listener, job, model.spec.stop_ids)

    def tell(step: Step) -> None:
        before = len(listener.final)
        now = step.tokens[0, 3:].tolist()
        assert now[:before] == listener.final, "a final token has changed"
        drafts = len(listener.drafts)
        follow(step)
        if len(listener.drafts) > drafts:
            told, draft = len(listener.final), listener.drafts[-1]
            assert draft == now[told : told + len(draft)]
            assert draft[-1] != MASK
            assert set(now[told + len(draft) :]) <= {MASK}

    tokens = finish(job, tell).tokens[0]
    ends = [i + 1 for i, token in enumerate(tokens) if token in (EOS, EOT)]
    assert listener.final == tokens[: ends[0] if ends else LENGTH]


def test_tokens_come_as_they_become_final(toy: Callable[..., Model]) -> None:
    model = toy(1)
    for name, sizes in (("left_to_right", {1}), ("wino", {7, 10})):
        job = generation_job(
            model,
            [[1]],
            Settings(decoder=name, gen_length=LENGTH, block_length=7, stop_at_eos=False),
        )
        listener, seen = Listener(), [0]
        follow = Follower(listener, job, ())
        for step in job.steps():
            follow(step)
            seen.append(len(listener.final))
        grown = {b - a for a, b in pairwise(seen)}
        assert grown - {0} == sizes, name
        assert seen[-1] == LENGTH


@pytest.mark.parametrize(
    ("streamer", "rows", "message"),
    [
        (Listener(), 2, "streamer follows one row, got 2"),
        (object(), 1, "streamer must have put and end"),
        (type("Greedy", (Listener,), {"_takes_logits": True})(), 1, "must take token ids"),
    ],
    ids=["rows", "kind", "logits"],
)
def test_streamers_that_cannot_follow(streamer: Any, rows: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(streamer, rows)


class Terminal(io.StringIO):
    """Writes on a grid, as a terminal does, for the two codes the streamer uses."""

    def isatty(self) -> bool:
        return True

    def screen(self) -> list[str]:
        """What stands there."""
        lines, column = [""], 0
        text = self.getvalue().replace("\x1b[2m", "").replace("\x1b[0m", "")
        while text:
            if text.startswith("\x1b["):
                column = int(text[2 : text.index("G")]) - 1
                text = text.split("\x1b[K", 1)[1]
                lines[-1] = lines[-1][:column]
            elif text[0] == "\n":
                lines.append("")
                column, text = 0, text[1:]
            else:
                lines[-1] = lines[-1][:column] + text[0] + lines[-1][column + 1 :]
                column, text = column + 1, text[1:]
        return lines


def ids(text: str) -> torch.Tensor:
    return torch.tensor(tokenizer()(text)["input_ids"])


def tokenizer() -> Any:
    return dlm.load().tokenizer


def test_drafts_stand_behind_final_text_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    terminal = Terminal()
    mask = torch.tensor([tokenizer().mask_token_id])
    streamer: Any = TextDiffusionStreamer(tokenizer(), skip_prompt=True, file=terminal)
    streamer.put(ids("the prompt"))
    streamer.put_draft(value=torch.cat((mask, ids("b c"), mask, mask, ids("d"))))
    assert terminal.screen() == ["_b c__d"]
    streamer.put(ids("a "))
    assert terminal.screen() == ["a "]
    streamer.put(ids("b"))
    streamer.put_draft(value=ids("\nmore than there is room for"))
    assert terminal.screen() == ["a b more than there "[:19]]
    streamer.put(ids("\nend"))
    streamer.end()
    assert terminal.screen() == ["a b", "end", ""]
    assert "\x1b" not in terminal.getvalue().rsplit("end", 1)[1]


def test_wide_letters_take_two_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "12")
    terminal = Terminal()
    streamer: Any = TextDiffusionStreamer(tokenizer(), skip_prompt=True, file=terminal)
    streamer.on_finalized_text("\u6f22\u5b57\u304b\u306a")
    assert streamer.column == 8
    streamer.token_cache = []
    monkeypatch.setattr(streamer, "text", lambda tokens: "\u5b57\u5b57\u5b57" if tokens else "")
    streamer.put_draft(value=ids("x"))
    assert terminal.getvalue().endswith("\x1b[2m\u5b57\x1b[0m")
    streamer.wipe()
    assert terminal.getvalue().endswith("\x1b[9G\x1b[K")


def test_no_codes_and_no_drafts_in_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    text = io.StringIO()
    streamer: Any = TextDiffusionStreamer(tokenizer(), file=text)
    plain: Any = TextStreamer(tokenizer())
    for part in ("one two", " three", "\nfour"):
        streamer.put_draft(value=ids(part))
        streamer.put(ids(part))
        plain.put(ids(part))
    streamer.end()
    plain.end()
    assert text.getvalue() == capsys.readouterr().out == "one two three\nfour\n"
