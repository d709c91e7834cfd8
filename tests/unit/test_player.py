"""A page that plays a generation shows what happened, and runs nothing that a model wrote."""

import copy
import html
import json
import math
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import dlm
from dlm.cli import app
from dlm.models.model import Model
from dlm.player import frames
from dlm.trajectory import Change, Trajectory

PROMPTS = [[{"role": "user", "content": f"Sudoku: {p}"}] for p in ("3102200002100320", "04133142")]
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
TAKE = "document.documentElement.dataset.taken=1"
ATTACK = f"</script><script>{TAKE}</script><img src=x onerror={TAKE}>"


@pytest.fixture(scope="module")
def tiny() -> Model:
    """The built-in model."""
    return dlm.load()


@pytest.fixture(scope="module")
def out(tiny: Model) -> dlm.Generation:
    """Tokens are taken back in it, and what follows an end of text is filled in."""
    return dlm.generate(tiny, PROMPTS, gen_length=20, decoder="saber", return_trajectory=True)


def data_of(page: str) -> Any:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page)
    assert found is not None
    return json.loads(found[1])


def test_frames_are_what_forwards_changed(tiny: Model, out: dlm.Generation) -> None:
    data = data_of(dlm.playback(tiny, out, PROMPTS))
    assert data["mask"] == tiny.spec.mask_id
    assert out.trajectory is not None
    assert any(trajectory.remasks for trajectory in out.trajectory)
    for row, trajectory, tokens in zip(data["rows"], out.trajectory, out.tokens, strict=True):
        canvas, seen = list(row["start"]), [list(row["start"])]
        for frame in row["frames"]:
            for place, token, _ in frame:
                canvas[place] = token
            seen.append(list(canvas))
        assert torch.equal(torch.tensor(seen[:-1]), trajectory.canvases)
        assert seen[-1] == tokens
        sure = {(c.step, c.position): c.confidence for c in trajectory.commits}
        for step, frame in enumerate(row["frames"]):
            for place, token, p in frame:
                written = sure.get((step, place))  # not of what was taken back, or filled in
                assert (p is None) == (written is None)
                assert p is None or p == pytest.approx(written, abs=1e-4)
                assert p is None or token != data["mask"]


def test_what_was_not_measured_is_null() -> None:
    """JSON has no NaN."""
    canvases = torch.tensor([[5, 5]])
    commits = [Change(0, 0, 7, math.nan), Change(0, 1, 8, 0.25)]
    found = frames(Trajectory(canvases, commits, [], []), [7, 8])
    assert found == {"start": [5, 5], "frames": [[[0, 7, None], [1, 8, 0.25]]]}


def test_tokens_have_texts_and_names(tiny: Model, out: dlm.Generation) -> None:
    tokenizer: Any = tiny.tokenizer
    data = data_of(dlm.playback(tiny, out))
    assert [row["title"] for row in data["rows"]] == ["row 0", "row 1"]
    for token, (text, name) in data["pieces"].items():
        assert name == tokenizer.convert_ids_to_tokens(int(token))
        special = int(token) in {*tiny.spec.stop_ids, tiny.spec.mask_id}
        assert text == ("\u00b7" if special else tokenizer.decode([int(token)]))
    titles = [row["title"] for row in data_of(dlm.playback(tiny, out, PROMPTS))["rows"]]
    assert titles == ["Sudoku: 3102200002100320", "Sudoku: 04133142"]
    one = dlm.generate(tiny, [7, 6], gen_length=4, return_trajectory=True)
    assert data_of(dlm.playback(tiny, one, [[7, 6]]))["rows"][0]["title"] == "[7, 6]"
    assert data_of(dlm.playback(tiny, one, "a text"))["rows"][0]["title"] == "a text"


def test_a_notebook_shows_it_in_a_frame(tiny: Model, out: dlm.Generation) -> None:
    page = dlm.playback(tiny, out)
    frame = re.fullmatch(r'<iframe srcdoc="([^"]*)" style="[^"]*"></iframe>', page._repr_html_())
    assert frame is not None
    assert html.unescape(frame[1]) == page


def test_what_is_refused(tiny: Model, out: dlm.Generation) -> None:
    with pytest.raises(ValueError, match="with return_trajectory=True, got one without"):
        dlm.playback(tiny, replace(out, trajectory=None))
    with pytest.raises(ValueError, match="out must be what generate or infill gave"):
        dlm.playback(tiny, "text")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="prompts must be one for each of 2 rows, got 1"):
        dlm.playback(tiny, out, ["a"])
    with pytest.raises(ValueError, match="tokenizer"):
        dlm.playback(replace(tiny, tokenizer=None), out)


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
def test_it_plays_in_a_browser(tiny: Model, out: dlm.Generation, tmp_path: Path) -> None:
    """The last forward is shown, and texts of prompts and tokens stay texts."""
    assert BROWSER is not None
    tokenizer: Any = copy.deepcopy(tiny.tokenizer)
    decode = tokenizer.decode
    tokenizer.decode = lambda ids, **how: ATTACK if 9 in ids else decode(ids, **how)
    hostile = replace(out, tokens=[[9, *row[1:]] for row in out.tokens])
    page = tmp_path / "page.html"
    page.write_text(dlm.playback(replace(tiny, tokenizer=tokenizer), hostile, [ATTACK, "b"]))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    options += ["--virtual-time-budget=2000", f"--user-data-dir={tmp_path / 'profile'}"]
    command = [BROWSER, *options, "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert not [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    dom = done.stdout
    assert "data-taken" not in dom
    assert dom.count(html.escape(ATTACK, quote=False)) == 3  # a title and a token of each row
    assert dom.count("<section>") == 2
    assert out.trajectory is not None
    for trajectory in out.trajectory:
        count = len(trajectory.canvases)
        assert f"forward {count} of {count}, 0 masks left" in dom
    assert len(re.findall(r'<span class="token', dom.split('<main id="rows">')[1])) == 40


def test_the_command_writes_it(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    args = ["generate", "Sudoku: 3102200002100320", "Sudoku: 04133142", "--gen-length=20"]
    result = CliRunner().invoke(app, [*args, "--json", "--html", str(path)], prog_name="dlm")
    assert result.exit_code == 0
    told = [json.loads(line) for line in result.stdout.splitlines()]
    data = data_of(path.read_text())
    assert [row["title"] for row in data["rows"]] == args[1:3]
    assert [len(row["frames"]) for row in data["rows"]] == [one["forwards"] for one in told]
    plain = CliRunner().invoke(app, [*args, "--json"], prog_name="dlm")
    assert [json.loads(line)["tokens"] for line in plain.stdout.splitlines()] == [
        one["tokens"] for one in told
    ]


@pytest.mark.parametrize(("given", "message"), [
    (["--html=no/such/page.html"], "--html must be a file that can be written, got 'no/such/p"),
    (["--html=."], "--html must be a file that can be written, got '.': Is a dir"),
    (["--html=page.html", "--watch"], "--watch and --html both show the canvas"),
    (["--html=page.html", "--infill", "--max-gen-length=4"], "leave --max-gen-length out"),
], ids=str)  # fmt: skip
def test_a_page_that_cannot_be_written_is_said_first(given: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["generate", "a", "--model=none/such", *given])
    assert result.exit_code == 2
    assert message in result.output
