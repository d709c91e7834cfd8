"""Countdown: reach a target number from three others, each used exactly once.

Gandhi et al. 2024, "Stream of Search", arXiv:2404.03683, in the format of the benchmark of Huang et
al. 2025 (PC-Sampler, arXiv:2508.13021): 1,000 problems with `--data countdown.jsonl`, else 500
generated ones that the built-in model never saw.

    {"input": "15,44,79,50", "output": "44-15=29,79-29=50"}

Checked against the original:
- The 1,000 reference answers are valid and exact.
- The score is `valid`: it accepts any equations that reach the target. `exact`, the authors'
  comparison with the reference string, accepts only one of many solutions.
- Different from the original: the prompts, and how equations are found in a longer text.
  Typographic and LaTeX signs count as those of a keyboard, as does an x between numbers.
  Parentheses around a left side or around a number next to a sign are ignored, but 2(5) + 3 = 8 is
  not read as a product. Markdown emphasis is not an operator. A result with a non-zero decimal part
  is not an equation.
"""

import re
from pathlib import Path

from dlm.data import Example, countdown
from dlm.eval.presets import published
from dlm.eval.source import drawn, held_in
from dlm.eval.task import Metric, Preset, Problem, Source, Task, Template

COUNT = 500

_EQUATION = re.compile(
    r"(?<![0-9.+*/-])(-?[0-9]{1,9})\s{0,2}([-+*/])\s{0,2}(-?[0-9]{1,9})"
    r"\s{0,2}=\s{0,2}(-?[0-9]{1,9})(?:\.0+)?(?!\.?[0-9])"
)
_SIGNS = str.maketrans("\u00d7\u22c5\u00b7\u2217\u00f7\u2212", "****/-")
_WORDS = {r"\times": "*", r"\cdot": "*", r"\div": "/"}
_NAMED = re.compile(r"\\(?:times|cdot|div)(?![a-zA-Z])")
_LETTER = re.compile(r"(?<=[0-9)])([^\S\n]{0,2})[xX]([^\S\n]{0,2})(?=[-(0-9])")
_MARKS = re.compile(  # an operator, with spaces on both sides or on none, or Markdown
    r"([0-9)](?:[^\S\n]*\*[^\S\n]*|\*+|[^\S\n]+\*+[^\S\n]+)(?=[-(0-9]))|[*_`]+"
)
_OPERAND = r"-?[0-9]{1,9}"
_ALONE = re.compile(  # a number in parentheses, after a sign or before one
    rf"([-+*/=]\s{{0,2}})\(\s{{0,2}}({_OPERAND})\s{{0,2}}\)(?![0-9])"
    r"|\(\s{0,2}(-[0-9]{1,9})\s{0,2}\)(?=\s{0,2}[-+*/=])"
    # A positive number in parentheses may be a step number, as in (1) -29+79=50: it must begin a
    # left side, and not be an argument or a factor.
    r"|(?<![0-9a-zA-Z)])(?<![0-9][^\S\n])(?<![0-9][^\S\n]{2})"
    r"\(\s{0,2}([0-9]{1,9})\s{0,2}\)"
    rf"(?=[^\S\n]{{0,2}}[-+*/]\s{{0,2}}\(?\s{{0,2}}{_OPERAND}[\s)]{{0,4}}=)"
)
_SIDE = re.compile(  # a left side in parentheses; after an operand it is part of a longer one
    r"([0-9)](?:[^\S\n]{0,2}[-+*/][^\S\n]{0,2})?)?"
    rf"\((\s{{0,2}}{_OPERAND}\s{{0,2}}[-+*/]\s{{0,2}}{_OPERAND}\s{{0,2}})\)(?=\s{{0,2}}=)"
)


def problem(number: int, example: Example) -> Problem:
    """An example as a problem; its id is its index."""
    *numbers, target = example.prompt.removeprefix(countdown.PREFIX).split(",")
    fields = {"prompt": example.prompt, "numbers": ", ".join(numbers), "target": target}
    return Problem(str(number), fields, example.response)


def read(path: Path) -> list[Problem]:
    """Read the problems of a file in the published format."""
    return [problem(number, each) for number, each in enumerate(countdown.read_jsonl(path))]


def local() -> list[Problem]:
    """Generated problems that the built-in model has never seen."""
    found = drawn("countdown", COUNT, held_out=True)
    return [problem(number, each) for number, each in enumerate(found)]


def equations(problem: Problem, output: str) -> str | None:
    """The last equations, as many as a solution needs: one fewer than there are numbers.

    If there are more, an equation that repeats the previous one, as a check does, counts once.
    """
    needed = len(problem.fields["numbers"].split(",")) - 1
    text = _NAMED.sub(lambda found: _WORDS[found[0]], output.translate(_SIGNS))
    text = _MARKS.sub(lambda found: found[1] or "", _LETTER.sub(r"\1*\2", text))
    text = _ALONE.sub(lambda found: f"{found[1] or ''}{found[2] or found[3] or found[4]}", text)
    text = _SIDE.sub(lambda found: found[0] if found[1] else found[2], text)
    found = [f"{a}{how}{b}={c}" for a, how, b, c in _EQUATION.findall(text)]
    if len(found) > needed:
        found = [one for one, before in zip(found, [None, *found], strict=False) if one != before]
    return ",".join(found[-needed:]) if found else None


def valid(problem: Problem, extracted: str) -> bool:
    """Whether true equations use every number once and end at the target."""
    return countdown.is_correct(problem.fields["prompt"], extracted)


def exact(problem: Problem, extracted: str) -> bool:
    """Whether the equations equal those of the reference as a string."""
    return extracted == problem.answer


EXPLAINED = """\
Use each of the numbers {numbers} exactly once to reach {target}. The steps may add, subtract, \
multiply and divide, two numbers at a time; the result of a step counts as a new number.

Answer with the steps alone, as equations with a comma between them, like 3*4=12,12+5=17."""

TASK = Task(
    name="countdown",
    # What earlier versions did wrong. 5: parentheses around a positive number before a sign hid
    # equations. 4: thoughts were read. 3: parentheses around other numbers or a left side hid
    # equations. 2: \\times and x hid equations. 1: emphasis and typographic signs hid equations;
    # 50.5 was read as 50
    version=6,
    summary="Reach a number from three others.",
    paper="Gandhi et al. 2024, arXiv:2404.03683",
    licence="Apache-2.0 where generated, MIT where published",
    source=Source(
        read=read,
        local=local,
        examples=held_in("countdown", problem, countdown.read_jsonl),
        where="countdown.jsonl of PC-Sampler",
    ),
    templates=(
        Template("plain", "{prompt}", chat=True),
        Template("explained", EXPLAINED, chat=True),
        Template(
            "base_5shot",
            "Numbers: {numbers}. Target: {target}.\nSteps:",
            shots=5,
            target=" {answer}",
            instruction="Reach the target from the numbers, each used once.\n\n",
            until=("Numbers:", "\n\n"),
        ),
    ),
    metrics=(Metric("valid", equations, valid), Metric("exact", equations, exact)),
    presets=(
        Preset(
            "built-in",
            {"gen_length": 24, "block_length": None},
            "README, built-in model, 200 generated problems",
            "14.5 at 24.0 forwards; 14.0 at 10.4 with threshold 0.9",
        ),
        *published("countdown"),
    ),
)
