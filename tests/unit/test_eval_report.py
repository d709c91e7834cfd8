"""The report: nothing a model wrote is markup, and nothing is missing."""

import base64
import hashlib
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dlm.eval.counting import DEFINITIONS
from dlm.eval.folder import Run
from dlm.eval.report import markdown, write_report
from dlm.eval.report.page import SECTIONS
from dlm.eval.report.ranking import ranking
from dlm.eval.report.samples import browser_data, chosen, rows_of
from dlm.eval.report.view import view
from dlm.eval.sample import Sample
from dlm.eval.summary import HEAD

HOSTILE = (
    "<script>alert(1)</script></script></textarea></pre><!-- ]]> <img src=x onerror=alert(2)>"
    "\"'` &lt; &#60; \u2028\u2029 \x00\x0b \ud800 \u202e |*_ end"
)
VOID = {"meta", "wbr"}

SETTINGS: dict[str, Any] = {
    "task": "gsm8k", "task_version": 1, "data": {"sha256": "aa"}, "model": "tiny", "dlm": "0.9",
    "dtype": "float32", "device": "cpu", "decoder_options": {},
    "generation": {"gen_length": 4, "seed": 7},
}  # fmt: skip
LAUNCH = {"started": "2026-01-02", "torch": "2.11", "commit": "abc1234", "batch_size": 16}


def sample(template: str, index: int, score: float, **more: Any) -> Sample:
    fields: dict[str, Any] = {
        "task": "gsm8k", "template": template, "id": f"test/{index}", "index": index,
        "prompt": f"What is {index}?", "prompt_tokens": 5, "output": f"It is {index}.",
        "tokens": [1, 2, 3, 9], "order": [0, 2, 1, -1], "response_tokens": 3, "decoded_tokens": 3,
        "forwards": 3, "query_tokens": 27, "seconds": 0.25, "answer": str(index),
        "extracted": {"flexible": str(index), "strict": None},
        "scores": {"flexible": score, "strict": 0.0}, "score": float(score), "detail": "",
        "seed": 7, "settings": "",
    }  # fmt: skip
    return Sample(**fields | more)


def run(decoder: str, scores: dict[str, Sequence[float]], **more: Any) -> Run:
    """A run whose samples have these scores, by template and index."""
    settings = SETTINGS | {"decoder": decoder, "templates": list(scores)}
    samples = [
        sample(template, index, score, **more)
        for template, row in scores.items()
        for index, score in enumerate(row)
    ]
    problems = max(map(len, scores.values()))
    return Run(Path("runs") / decoder, settings, "hash", problems, [LAUNCH], samples)


def three() -> list[Run]:
    return [
        run("low_confidence", {"chat": [1, 1, 1, 0], "plain": [1, 0, 0, 0]}),
        run("threshold", {"chat": [1, 1, 0, 0], "plain": [1, 1, 1, 0]}, forwards=2),
        run("random", {"chat": [0, 0, 0, 0], "plain": [0, 0, 0, 0]}, forwards=40),
    ]


@dataclass
class Parsed(HTMLParser):
    """A page as a browser sees it: elements with their attributes and texts."""

    elements: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    texts: list[tuple[str, str]] = field(default_factory=list)
    open: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def said(self, tag: str) -> list[str]:
        return [text for name, text in self.texts if name == tag]

    @property
    def text(self) -> str:
        return " ".join(text for tag, text in self.texts if tag not in ("script", "style"))


def report(runs: Sequence[Run], folder: Path, **options: Any) -> tuple[str, Parsed]:
    out = folder / "deep" / "report.html"
    write_report(runs, out, **options)
    page = out.read_bytes().decode("ascii")
    parsed = Parsed()
    parsed.feed(page)
    parsed.close()
    assert parsed.open == []
    return page, parsed


def data_of(parsed: Parsed) -> Any:
    return json.loads(parsed.said("script")[0])


# Escaping


def hostile_runs() -> list[Run]:
    """Two runs where every text that can be is hostile."""
    runs = []
    for decoder in ("low", "high"):
        names = {"decoder": decoder + HOSTILE, "templates": [HOSTILE]}
        settings = SETTINGS | names | dict.fromkeys(("model", "device", HOSTILE), HOSTILE)
        texts = {
            "id": HOSTILE, "prompt": [{"role": HOSTILE, "content": HOSTILE}], "output": HOSTILE,
            "answer": HOSTILE, "extracted": {HOSTILE: HOSTILE}, "detail": HOSTILE,
        }  # fmt: skip
        samples = [sample(HOSTILE, 0, 1, **texts, scores={HOSTILE: 1.0})]
        launch = {"commit": HOSTILE, HOSTILE: HOSTILE}
        runs.append(Run(Path(f"{decoder}<b>"), settings, "hash", 1, [launch], samples))
    return runs


def test_no_text_of_a_run_is_markup(tmp_path: Path) -> None:
    page, parsed = report(hostile_runs(), tmp_path)
    clean, plain = report([run("low", {"a": [1]}), run("high", {"a": [1]})], tmp_path)
    assert {tag for tag, _ in parsed.elements} <= {tag for tag, _ in plain.elements} | {"wbr"}
    assert len(parsed.named("script")) == len(plain.named("script")) == 2
    assert page.lower().count("<script") == clean.lower().count("<script") == 2
    assert page.count("<!--") == clean.count("<!--") == 0
    attributes = {name for _, found in parsed.elements for name in found}
    assert not [name for name in attributes if name.startswith("on")]
    assert "style" not in attributes
    assert "alert(1)</script>" in parsed.text


def test_data_of_the_browser_is_what_the_runs_say(tmp_path: Path) -> None:
    page, parsed = report(hostile_runs(), tmp_path)
    item = data_of(parsed)["items"][0]
    assert item["samples"][0][0]["output"] == item["answer"] == HOSTILE
    assert item["samples"][0][0]["metrics"] == [[HOSTILE, 1.0, HOSTILE]]
    assert item["prompt"] == f"{HOSTILE}:\n{HOSTILE}"
    script = page.split('id="data">')[1].split("</script>")[0]
    assert not set(script) & set("<>&\u2028\u2029")


def test_only_our_script_and_style_may_act(tmp_path: Path) -> None:
    _, parsed = report(three(), tmp_path)
    policies = [each for each in parsed.named("meta") if "http-equiv" in each]
    assert [each["http-equiv"] for each in policies] == ["Content-Security-Policy"]
    policy = policies[0]["content"] or ""
    for kind in ("script", "style"):
        content = parsed.said(kind)[-1].encode()
        digest = base64.b64encode(hashlib.sha256(content).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none';")
    assert not re.search("unsafe|http", policy)


def test_the_page_fetches_nothing(tmp_path: Path) -> None:
    page, parsed = report(three(), tmp_path)
    for tag, attributes in parsed.elements:
        for name in ("src", "href", "xlink:href", "action", "srcset"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:image/png;base64,")), (tag, value)
    assert not re.search(r"https?://|@import|url\((?!#)", page)


# Contents


def test_sections_stand_in_order(tmp_path: Path) -> None:
    _, parsed = report(three(), tmp_path)
    assert [each["id"] for each in parsed.named("section")] == list(SECTIONS)
    assert parsed.said("h2") == list(SECTIONS.values())
    assert [each["href"] for each in parsed.named("a")] == [f"#{key}" for key in SECTIONS]
    assert parsed.said("title")[0] == "gsm8k: tiny - dlm eval"


def test_the_page_says_what_is_counted_and_with_what(tmp_path: Path) -> None:
    _, parsed = report(three(), tmp_path)
    told = dict(zip(parsed.said("dt"), parsed.said("dd"), strict=True))
    assert dict(DEFINITIONS).items() <= told.items()
    assert (told["dtype"], told["device"], told["dlm"], told["seed"]) == (
        "float32",
        "cpu",
        "0.9",
        "7",
    )
    assert (told["commit"], told["torch"]) == ("abc1234", "2.11")
    head = [name.replace("\xa0", " ") for name in parsed.said("th")]
    assert head[: len(HEAD) + 1] == [*HEAD, "strict"]
    assert "generation: gen_length" in head


def test_an_unfinished_run_is_marked(tmp_path: Path) -> None:
    first, *others = three()
    part = replace(first, problems=1319)
    _, parsed = report([part, *others], tmp_path)
    assert "low_confidence has 8 of 2,638 samples." in parsed.text
    assert "4 of 1,319" in parsed.said("td")
    assert "8 of 2,638" in parsed.said("td")
    assert "Not complete" not in report(three(), tmp_path)[1].text


def test_a_run_alone_needs_no_comparison(tmp_path: Path) -> None:
    _, parsed = report([run("low", {"chat": [1, 0, 1, 1]})], tmp_path)
    assert not re.search("Against|McNemar", parsed.text)
    assert "1 run, 1 template, 4 samples" in parsed.text


def test_prompts_that_no_model_could_take_are_told(tmp_path: Path) -> None:
    empty = {"forwards": 0, "tokens": [], "order": [], "seconds": 0.0, "response_tokens": 0}
    _, parsed = report([run("low", {"chat": [0, 0]}, **empty), three()[0]], tmp_path)
    assert "low: 2 prompts too long" in parsed.text
    assert "No sample to show." in parsed.text


def test_runs_without_a_common_sample_stand_side_by_side(tmp_path: Path) -> None:
    _, parsed = report([run("low", {"chat": [1]}), run("high", {"plain": [1]})], tmp_path)
    assert "high has no sample in common with low." in parsed.text
    assert "| - | - | - |" in markdown([run("low", {"chat": [1]}), run("high", {"plain": [1]})])


def test_runs_of_other_templates_meet_in_those_they_share(tmp_path: Path) -> None:
    low = run("low", {"x": [1, 1], "y": [0, 0], "z": [0, 1]})
    high = run("high", {"z": [1, 1], "y": [0, 1]})
    first, second = view([low, high]).entries
    assert [row.template for row in first.figures] == ["x", "y", "z", "all"]
    assert (first.overall.score, second.overall.score) == (0.25, 0.75)
    first, second = view([low, run("high", {"y": [0, 1]})]).entries
    assert [row.template for row in first.figures] == ["x", "y", "z"]
    assert (first.overall.template, second.overall.score) == ("y", 0.5)


def test_runs_of_one_name_get_their_folder(tmp_path: Path) -> None:
    first = run("low", {"chat": [1, 0]})
    _, parsed = report([first, replace(first, folder=Path("runs/other"))], tmp_path)
    assert [each["name"] for each in data_of(parsed)["runs"]] == ["low [low]", "low [other]"]


def test_what_cannot_be_reported_is_refused(tmp_path: Path) -> None:
    first = run("low", {"chat": [1]})
    other = run("high", {"chat": [1]})
    for runs, message in (
        ([], "at least one run"),
        ([replace(first, samples=[])], "at least one sample"),
        ([first, replace(other, settings=other.settings | {"task": "math"})], "one task"),
        ([first, replace(other, settings=other.settings | {"data": {"sha256": "b"}})], "one data"),
    ):
        with pytest.raises(ValueError, match=message):
            write_report(runs, tmp_path / "x.html")
        with pytest.raises(ValueError, match=message):
            markdown(runs)
    with pytest.raises(ValueError, match="limit must be an int >= 0"):
        write_report([first], tmp_path / "x.html", limit=-1)
    assert not (tmp_path / "x.html").exists()


# Ranking of decoders


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ({"x": [[1, 1], [1, 0]], "y": [[1, 0], [0, 0]]}, "the same under both templates: d0, d1."),
        ({"x": [[1, 1], [1, 0]], "y": [[0, 0], [0, 0]]}, "the same or tied under both"),
        (
            {"x": [[1, 1], [1, 0]], "y": [[0, 0], [1, 1]]},
            "not the same under every template: d0 is 50.0 points ahead of d1 under x, "
            "100.0 behind under y.",
        ),
        ({"x": [[1, 1], [1, 0]]}, "of one template"),
        ({"x": [[1, 1]], "y": [[1, 0]]}, "From 50.0% to 100.0% under 2 templates."),
    ],
)
def test_whether_templates_change_the_ranking(
    scores: dict[str, list[list[int]]], expected: str
) -> None:
    count = len(next(iter(scores.values())))
    runs = [run(f"d{k}", {name: rows[k] for name, rows in scores.items()}) for k in range(count)]
    assert expected in ranking(view(runs))


# Samples


def test_samples_on_which_decoders_differ_come_first() -> None:
    runs = [run("low", {"chat": [1, 1, 1, 0, 1]}), run("high", {"chat": [1, 1, 0, 0, 0]})]
    rows = rows_of(view(runs))
    assert [key[1] for key in chosen(rows, 1)] == [2]
    assert [key[1] for key in chosen(rows, 3)] == [0, 2, 4]
    assert list(chosen(rows, 9)) == list(rows)


def test_a_page_holds_no_more_than_it_says(tmp_path: Path) -> None:
    _, parsed = report(three(), tmp_path, limit=3)
    found = data_of(parsed)
    assert (len(found["items"]), found["total"]) == (3, 8)
    assert "holds 3 of 8 prompts" in parsed.text
    assert all(item["differs"] for item in found["items"])
    assert "All 8 prompts" in report(three(), tmp_path)[1].text


def test_samples_stand_beside_each_other() -> None:
    low, high = run("low", {"chat": [1, 0]}), run("high", {"chat": [0, 0]}, output="other")
    found = browser_data(view([low, replace(high, samples=high.samples[:1])]), 9)
    first, second = found["items"]
    assert [[each["score"] for each in group] for group in first["samples"]] == [[1.0], [0.0]]
    assert [group[0]["output"] for group in first["samples"]] == ["It is 0.", "other"]
    assert (second["samples"][1], second["right"]) == ([], [[0, 1], [0, 0]])
    assert (first["differs"], second["differs"]) == (True, False)


def test_what_prompts_share_is_written_once() -> None:
    shots = "Question: solved\nAnswer: 1\n\n" * 10
    one = run("low", {"chat": [1, 0]})
    long = [replace(each, prompt=f"{shots}{each.prompt}") for each in one.samples]
    found = browser_data(view([replace(one, samples=long)]), 9)
    assert found["prefixes"] == {"chat": shots}
    assert [each["prompt"] for each in found["items"]] == ["What is 0?", "What is 1?"]


# Charts


def test_a_heat_map_shows_forty_samples_at_most(tmp_path: Path) -> None:
    _, parsed = report([run("low", {"chat": [1] * 50})], tmp_path)
    maps = [each["href"] for each in parsed.named("image")]
    sizes = [
        Image.open(io.BytesIO(base64.b64decode((href or "").partition(",")[2]))).size
        for href in maps
    ]
    assert sizes == [(64, 1), (4, 40), (4, 1)]
    assert len([each for each in parsed.named("rect") if each.get("class") == "over"]) == 40


def test_charts_show_each_run_and_each_template(tmp_path: Path) -> None:
    _, parsed = report(three(), tmp_path)
    marks = [each for each in parsed.named("path") if (each.get("class") or "").startswith("mark")]
    # Two tables, two legends, two charts of runs, one of runs and templates.
    assert len(marks) == 3 + 2 + 2 * 3 + 2 * 3 + 3 * 2
    assert len(parsed.named("circle")) == 2 * 6
    assert {each["class"] for each in marks} == {"mark s0", "mark s1", "mark s2"}
    titles = [text for text in parsed.said("title") if text.startswith("threshold, all")]
    assert (
        titles
        == ["threshold, all: 62.5% (21.9% to 90.8%), 2.0 forwards, 0.25 s a sample, n = 8"] * 2
    )
    assert {"forwards a sample, logarithmic", "seconds a sample"} <= set(parsed.said("text"))


def test_seconds_of_several_devices_are_called_so(tmp_path: Path) -> None:
    first, second, _ = three()
    other = replace(second, settings=second.settings | {"device": "gpu"})
    assert "different devices (cpu, gpu)" in report([first, other], tmp_path)[1].text


# Markdown


def test_markdown_is_a_table_with_definitions() -> None:
    told = markdown(three())
    title, rows, terms, places = told.strip().split("\n\n")
    cells = [line.strip("|").split("|") for line in rows.splitlines()]
    assert {len(line) for line in cells} == {len(HEAD) + 4}
    assert (title, len(cells)) == ("**gsm8k**: tiny", 2 + 3 * 3)
    assert "| threshold | chat | 4 | 50.0% |" in rows
    assert "| -25.0 | " in rows
    assert terms.count("\n- ") + 1 == len(DEFINITIONS) + 6
    assert places.count("commit abc1234; seed 7") == 3


def test_markdown_escapes_what_it_holds() -> None:
    told = markdown(hostile_runs())
    row = told.splitlines()[4]
    bars = len(re.findall(r"(?<!\\)\|", row))
    assert bars == len(re.findall(r"(?<!\\)\|", told.splitlines()[3]))
    assert "<" not in told
    assert "\\|\\*\\_ end" in row
