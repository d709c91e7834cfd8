"""The report in a browser: its script runs, nobody else's does, and it fits wide and narrow."""

import html
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dlm.eval.folder import Run
from dlm.eval.report import write_report
from dlm.eval.sample import Sample

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs Chromium")

OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--hide-scrollbars", "--enable-logging=stderr", "--virtual-time-budget=5000",
)  # fmt: skip

ATTACK = "document.documentElement.dataset.taken=1"
HOSTILE = (
    f"<script>{ATTACK}</script></script></pre><img src=x onerror={ATTACK}><svg onload={ATTACK}>"
)


def run(decoder: str, right: int) -> Run:
    settings: dict[str, Any] = {
        "task": "gsm8k", "task_version": 1, "data": {"sha256": "a"}, "templates": ["chat", "plain"],
        "model": f"tiny{HOSTILE}", "decoder": decoder, "decoder_options": {"threshold": 0.9},
        "device": "cpu", "dtype": "float32", "dlm": "1", "generation": {"seed": 0},
    }  # fmt: skip
    samples = [
        Sample(
            task="gsm8k", template=template, id=f"test/{index}", index=index,
            prompt=f"{HOSTILE} What is {index}?", prompt_tokens=9,
            output=f"{HOSTILE}\n" + "It is very long. " * 20 + f"The {decoder} says {index}.",
            tokens=[1] * 32, order=[place // 4 for place in range(24)] + [-1] * 8,
            response_tokens=24, decoded_tokens=24, forwards=6, query_tokens=200, seconds=0.5,
            answer=HOSTILE, extracted={"m": HOSTILE}, scores={"m": float(index < right)},
            score=float(index < right), detail=HOSTILE, seed=0, settings="",
        )
        for template in settings["templates"]
        for index in range(8)
    ]  # fmt: skip
    return Run(Path(decoder), settings, "hash", 8, [{"torch": "2"}], samples)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report") / "report.html"
    write_report([run("low_confidence", 4), run("threshold", 6), run("random", 1)], out)
    return out


def browse(page: Path, folder: Path, *options: str) -> str:
    """What the browser prints; fails on any complaint of a page."""
    assert BROWSER is not None
    profile = folder / "profile"
    shutil.rmtree(profile, ignore_errors=True)
    command = [BROWSER, *OPTIONS, f"--user-data-dir={profile}", *options, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert complaints == []
    return done.stdout


def probe(page: Path, script: str, *options: str) -> Any:
    """What a function of ours finds in a copy of the page that lets it run."""
    text = page.read_text()
    policy = re.search(r'<meta http-equiv="Content-Security-Policy"[^>]*>', text)
    assert policy is not None
    told = f"document.documentElement.dataset.found = JSON.stringify((() => {{{script}}})());"
    copy = page.with_name("probe.html")
    copy.write_text(
        text.replace(policy[0], "").replace("</body>", f"<script>{told}</script></body>")
    )
    found = re.search(r'data-found="([^"]*)"', browse(copy, page.parent, "--dump-dom", *options))
    assert found is not None
    return json.loads(html.unescape(found[1]))


def test_the_script_runs_and_no_other(page: Path) -> None:
    dom = browse(page, page.parent, "--dump-dom")
    root = re.search(r"<html[^>]*>", dom)
    assert root is not None
    assert 'data-ready="16"' in root[0]
    assert "data-taken" not in dom
    assert dom.count('aria-current="true"') == 1
    assert html.escape(f"onerror={ATTACK}>", quote=False) in dom


def test_hostile_text_is_text_even_without_the_policy(page: Path) -> None:
    found = probe(
        page,
        "return {taken: document.documentElement.dataset.taken || null,"
        " bad: document.querySelectorAll('img, pre svg, pre script').length,"
        " output: document.querySelector('pre.output').textContent};",
    )
    assert (found["taken"], found["bad"]) == (None, 0)
    assert found["output"].startswith(HOSTILE)


def test_filters_search_and_keys(page: Path) -> None:
    found = probe(
        page,
        """
        const told = {};
        const count = () => document.querySelector(".count").textContent;
        const shown = () => document.querySelector(".detail h3").textContent;
        const set = (label, value) => {
          const field = [...document.querySelectorAll(".controls label")]
            .find((each) => each.textContent.startsWith(label));
          const box = field.querySelector("select");
          box.value = value;
          box.dispatchEvent(new Event("change"));
        };
        const key = (key, at) => (at || document.body)
          .dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
        told.all = [count(), shown()];
        set("template", "plain");
        told.template = [count(), shown()];
        set("decoder", "1");
        set("result", "wrong");
        told.wrong = [count(), shown()];
        set("decoder", ""); set("result", ""); set("template", "chat");
        const differ = document.querySelector(".controls input[type=checkbox]");
        differ.click();
        told.differ = [count(), shown()];
        key("ArrowRight"); key("j");
        told.forth = shown();
        key("ArrowLeft");
        told.back = shown();
        key("j", document.querySelector("input[type=search]"));
        told.typed = shown();
        for (let n = 0; n < 20; n++) key("j");
        told.last = [shown(), document.querySelectorAll(".bar-row button")[1].disabled];
        differ.click();
        document.querySelector("input[type=search]").value = "RANDOM says 7";
        differ.dispatchEvent(new Event("change"));
        told.search = [count(), shown()];
        document.querySelector("input[type=search]").value = "nowhere";
        differ.dispatchEvent(new Event("change"));
        key("j");
        told.none = [count(), document.querySelector(".detail").textContent];
        return told;
        """,
    )
    assert found["all"] == ["16 of 16 prompts", "test/0chat"]
    assert found["template"] == ["8 of 16 prompts", "test/0plain"]
    assert found["wrong"] == ["2 of 16 prompts", "test/6plain"]
    assert found["differ"] == ["5 of 16 prompts", "test/1chat"]
    assert (found["forth"], found["back"], found["typed"]) == (
        "test/3chat", "test/2chat", "test/2chat",
    )  # fmt: skip
    assert found["last"] == ["test/5chat", True]
    assert found["search"] == ["1 of 16 prompts", "test/7chat"]
    assert found["none"] == ["0 of 16 prompts", "Nothing fits."]


def test_a_sample_shows_every_decoder(page: Path) -> None:
    found = probe(
        page,
        """
        const strip = document.querySelector("canvas");
        const pixels = strip.getContext("2d").getImageData(0, 0, 32, 1).data;
        const pixel = (x) => [...pixels.slice(4 * x, 4 * x + 4)];
        return {
          names: [...document.querySelectorAll("article h4")].map((each) => each.textContent),
          marks: [...document.querySelectorAll("article .verdict")].map((each) => each.title),
          width: strip.width, first: pixel(0), last: pixel(23), never: pixel(24),
        };
        """,
    )
    assert [name[1:] for name in found["names"]] == [
        "low_confidence(threshold=0.9)", "threshold(threshold=0.9)", "random(threshold=0.9)",
    ]  # fmt: skip
    assert found["marks"] == ["right"] * 3
    assert found["width"] == 32
    assert found["first"] == [68, 1, 84, 255]
    assert found["last"] == [253, 231, 37, 255]
    assert found["never"][3] == 0


def test_samples_of_a_prompt_fold(tmp_path: Path) -> None:
    one = run("low_confidence", 4)
    again = [replace(each, repeat=1, score=0.0, output="Another.") for each in one.samples]
    several = replace(one, samples=[*one.samples, *again], repeats=2)
    write_report([several, run("threshold", 8)], tmp_path / "report.html")
    found = probe(
        tmp_path / "report.html",
        """
        const count = () => document.querySelector(".count").textContent;
        const pick = (name, value) => {
          const box = [...document.querySelectorAll(".controls label")]
            .find((each) => each.textContent.startsWith(name)).querySelector("select");
          box.value = value;
          box.dispatchEvent(new Event("change"));
        };
        const told = {
          badges: [...document.querySelector(".list li").querySelectorAll(".verdict")]
            .map((each) => [each.textContent, each.title]),
          folds: [...document.querySelectorAll("article details")].map((each) => [
            each.open,
            each.querySelector("summary").textContent,
            each.querySelectorAll("pre").length,
          ]),
          articles: document.querySelectorAll("article").length,
        };
        pick("decoder", "0"); pick("result", "right"); told.right = count();
        pick("result", "wrong"); told.wrong = count();
        return told;
        """,
    )
    assert found["badges"] == [["1/2", "1 of 2 right"], ["\u2713", "right"]]
    assert found["folds"] == [[True, "\u2713sample 1", 1], [False, "\u2717sample 2", 1]]
    assert found["articles"] == 2
    assert (found["right"], found["wrong"]) == ("8 of 16 prompts", "16 of 16 prompts")


@pytest.mark.parametrize("width", [400, 1280])
def test_the_page_does_not_scroll_sideways(page: Path, width: int) -> None:
    """Headless windows have a least width, frames do not."""
    frame = page.with_name("frame.html")
    measure = (
        "const root = document.querySelector('iframe').contentDocument.documentElement;"
        "document.documentElement.dataset.size = [root.clientWidth, root.scrollWidth,"
        " root.dataset.ready, root.dataset.taken];"
    )
    frame.write_text(
        f'<body style="margin: 0"><iframe style="width: {width}px; height: 900px; border: 0"'
        f' srcdoc="{html.escape(page.read_text())}" onload="{html.escape(measure)}"></iframe>'
    )
    dom = browse(frame, page.parent, "--dump-dom", "--window-size=1400,1000")
    assert f'data-size="{width},{width},16,"' in dom


def test_pictures_in_light_and_dark(page: Path) -> None:
    pictures = {}
    for scheme, number in (("dark", 0), ("light", 1)):
        shot = page.with_name(f"{scheme}.png")
        setting = f"--blink-settings=preferredColorScheme={number}"
        browse(page, page.parent, setting, f"--screenshot={shot}", "--window-size=1280,1600")
        with Image.open(shot) as image:
            assert image.size == (1280, 1600)
            pictures[scheme] = np.asarray(image.convert("RGB"), dtype=np.float64)
    assert all(picture.std() > 15 for picture in pictures.values())
    assert pictures["light"].mean() > 200
    assert pictures["dark"].mean() < 80
