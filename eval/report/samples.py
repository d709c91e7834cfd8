"""The samples that a page contains, as data for its browser."""

import json
from collections import defaultdict
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from dlm.eval.repeats import mean
from dlm.eval.report.html import Markup
from dlm.eval.report.image import PALETTE
from dlm.eval.report.view import View
from dlm.eval.sample import Prompt, Sample

LIMIT = 200  # prompts on a page, each with the outputs of all runs
PREFIX = 200  # characters that prompts of a template must share to be stored once

EACH = 8  # samples of a prompt and run on a page

Row = list[list[Sample]]
"""The samples of each run for one prompt."""


def rows_of(shown: View) -> dict[Prompt, Row]:
    """Samples by prompt, in the order of templates and problems."""
    found: dict[Prompt, Row] = defaultdict(lambda: [[] for _ in shown.entries])
    for entry in shown.entries:
        for sample in entry.run.samples:
            found[sample.asked][entry.number].append(sample)
    place = {name: number for number, name in enumerate(shown.templates)}
    return dict(sorted(found.items(), key=lambda item: (place[item[0][0]], item[0][1])))


def differs(row: Row) -> bool:
    """Whether runs differ in how often they are right."""
    return len({mean([each.score for each in group]) for group in row if group}) > 1


def chosen(rows: dict[Prompt, Row], limit: int) -> dict[Prompt, Row]:
    """Choose up to `limit` prompts: first those on which runs differ, then by lowest index."""
    urgent = sorted(rows, key=lambda key: (not differs(rows[key]), key[1], key[0]))
    kept = set(urgent[:limit])
    return {key: row for key, row in rows.items() if key in kept}


def prompt_text(prompt: Any) -> str:
    """A prompt as text; chat messages with their roles."""
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(f"{each['role']}:\n{each['content']}" for each in prompt)


def shared(prompts: Sequence[str]) -> str:
    """The whole lines that prompts begin with, such as solved examples; "" if too short."""
    if len(prompts) < 2:
        return ""
    ends = zip(min(prompts), max(prompts), strict=False)  # a prefix of these two is a prefix of all
    common = "".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], ends))
    lines = common[: common.rfind("\n") + 1]
    return lines if len(lines) >= PREFIX else ""


def record(sample: Sample) -> dict[str, Any]:
    """The data of a sample that the browser shows."""
    return {
        "repeat": sample.repeat,
        "output": sample.output,
        "score": sample.score,
        "metrics": [
            [name, value, sample.extracted.get(name)] for name, value in sample.scores.items()
        ],
        "forwards": sample.forwards,
        "tokens": sample.response_tokens,
        "seconds": round(sample.seconds, 4),
        "detail": sample.detail,
        "order": sample.order,
    }


def item(key: Prompt, row: Row, prefix: str) -> dict[str, Any]:
    """The data of a prompt that the browser shows."""
    first = next(each for group in row for each in group)
    return {
        "id": first.id,
        "template": key[0],
        "index": key[1],
        "prompt": prompt_text(first.prompt)[len(prefix) :],
        "answer": first.answer,
        "differs": differs(row),
        "right": [[sum(each.score == 1 for each in group), len(group)] for group in row],
        "samples": [[record(each) for each in group[:EACH]] for group in row],
    }


def browser_data(shown: View, limit: int) -> dict[str, Any]:
    """All data of the browser."""
    rows = rows_of(shown)
    kept = chosen(rows, limit)
    prompts: defaultdict[str, list[str]] = defaultdict(list)
    for (template, _), row in kept.items():
        prompts[template] += [prompt_text(group[0].prompt) for group in row if group]
    prefixes = {name: shared(texts) for name, texts in prompts.items()}
    return {
        "runs": [{"name": entry.label, "series": entry.series} for entry in shown.entries],
        "palette": PALETTE,
        "prefixes": prefixes,
        "items": [item(key, row, prefixes[key[0]]) for key, row in kept.items()],
        "total": len(rows),
    }


def embedded(data: Any) -> Markup:
    """JSON that can be put into a page without any of its content ending the script element.

    It is ASCII, so U+2028 and U+2029 are escaped, and <, > and & are escaped too, so that it
    contains no `</script>` and no `<!--`.
    """
    told = json.dumps(data, separators=(",", ":"))
    for sign in "<>&":
        told = told.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(told)
