"""Readers of answers: each of the ways in which models write them down, and any text at all."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlm.eval.extract import (
    Block,
    as_body,
    bare_code,
    begins_indented,
    block_defining,
    code_blocks,
    defines,
    first_block,
    joined,
    last_boxed,
    last_number,
    parsed,
    whole_module,
    without_tail,
    without_thoughts,
)

ADD = "def add(a, b):\n    return a + b"


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        (r"so \boxed{18}.", "18"),
        (r"\boxed{1} or \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\left\{1, 2\right\}}", r"\left\{1, 2\right\}"),
        (r"\boxed{\{ 1 \}}", r"\{ 1 \}"),
        (r"\boxed { 18 }", "18"),
        (r"\fboxed{7}", "7"),
        ("\\boxed{a\n+b}", "a\n+b"),
        (r"\boxed{\boxed{3} eggs}", "3"),
        (r"\boxed{4} then \boxed{5", "4"),
        (r"\boxed{}", None),
        (r"\boxed{1} then \boxed{ }", "1"),
        (r"\boxed{2 \boxed{}}", r"2 \boxed{}"),
        (r"{\boxed{6}} }}}", "6"),
        (r"\boxed{7", None),
        (r"\boxed 7", None),
        ("boxed{7}", None),
        (r"\unboxed{7}", None),
        ("", None),
    ],
)
def test_last_boxed(text: str, inside: str | None) -> None:
    assert last_boxed(text) == inside


@given(st.text(alphabet=r"ab\{}", max_size=12), st.integers(-999, 999))
def test_a_closed_box_at_the_end_is_always_found(before: str, number: int) -> None:
    text = before.replace("\\", "") + rf" \boxed{{{number}}}"
    assert last_boxed(text) == str(number)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>1</think>2", "2"), ("1<think>2\n</think>\n3", "1\n3"), ("1</think>2", "2"),
        ("<think>1</think>2<think>3</think>4", "24"), ("<think>1<think>2</think>3", "3"),
        ("1</think>2</think>3", "3"), ("<think>1", "<think>1"), ("1", "1"), ("", ""),
        ("<think></think>", ""), ("<think>1</think>2<think>3", "2<think>3"),
    ],
)  # fmt: skip
def test_thoughts_are_no_part_of_an_answer(text: str, answer: str) -> None:
    assert without_thoughts(text) == answer


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("3 or 4", "4"), ("1,234.", "1,234."), ("$18", "$18"), ("-5", "-5"), ("1e3", "3"),
        ("10%", "10"), ("1/2", "2"), ("so 18 ...", "..."), ("nothing", None), ("\u0661", None),
    ],
)  # fmt: skip
def test_last_number(text: str, number: str | None) -> None:
    assert last_number(text) == number


@pytest.mark.parametrize(
    ("text", "blocks"),
    [
        (f"```python\n{ADD}\n```", [Block("python", ADD, True)]),
        (f"```Python3\n{ADD}\n```\nDone.", [Block("python3", ADD, True)]),
        (f"```\n{ADD}\n```", [Block("", ADD, True)]),
        (f"```python\n{ADD}", [Block("python", ADD, False)]),
        (f"~~~python\n{ADD}\n~~~", [Block("python", ADD, True)]),
        ("````\n```\nx\n```\n````", [Block("", "```\nx\n```", True)]),
        ("Here: ```python\nx = 1\n```", [Block("python", "x = 1", True)]),
        ("```python\nx = 1```", [Block("python", "x = 1", True)]),
        ("  ```python\n  x = 1\n    y\n  ```", [Block("python", "x = 1\n  y\n", True)]),
        ("```a\n1\n```\n```b\n2\n```", [Block("a", "1", True), Block("b", "2", True)]),
        ("```python", [Block("python", "", False)]),
        ("a `b` and ``c``", []),
        ("```x = 1``` in a line", []),
        ("``python\nx = 1\n``", []),
        ("", []),
    ],
)  # fmt: skip
def test_code_blocks(text: str, blocks: list[Block]) -> None:
    found = code_blocks(text)
    assert [(b.language, b.text.rstrip("\n"), b.closed) for b in found] == [
        (b.language, b.text.rstrip("\n"), b.closed) for b in blocks
    ]


@pytest.mark.parametrize(
    ("line", "language"),
    [
        ("~~~ a ~~~ b", "a"), (" \t~~~~ A", "a"), ("x ~~~ a ~~~ b", "b"), ("~~ ~~~ c", "c"),
        ("~~~", ""), ("x```py", "py"), ("~~~ x ```py", "py"), ("~~~ ``", None),
        ("x ~~~ `", None), ("``` `", None), ("x``", None), ("``` ```", None), ("~```", None),
        ("~~~```", None), ("~~", None), ("", None),
    ],
)  # fmt: skip
def test_what_opens_a_block(line: str, language: str | None) -> None:
    """As a pattern over the whole line would have it, which takes quadratic time."""
    expected = [] if language is None else [Block(language, "", closed=False)]
    assert code_blocks(line) == expected


def test_fences_in_one_line_take_linear_time() -> None:
    began = time.process_time()
    for end in ("", "`", "```"):
        code_blocks("a" + "~~~ " * 40_000 + end)
    assert time.process_time() - began < 5.0


def test_a_block_is_chosen_by_what_it_defines() -> None:
    other = "def other():\n    pass"
    text = f"```text\n{ADD} # text\n```\n```python\n{other}\n```\n```python\n{ADD}\n```"
    assert block_defining(text, ("add",)) == ADD
    assert block_defining(text, ("nothing", "other")) == other
    assert block_defining(text, ("nothing",)) is None
    assert block_defining(f"```text\n{ADD}\n```", ("add",)) == ADD
    assert block_defining(f"```\n{ADD}\n```", ("add",), but=f"\n{ADD}\n") is None
    assert first_block("```\n\n```\n```sh\nls\n```\n```py\nx\n```") == "x"
    assert first_block("```sh\nls\n```") == "ls"
    assert first_block("ls") is None


@pytest.mark.parametrize(
    ("code", "is_there"),
    [
        (ADD, True), (f"x = 1\n{ADD}", True), (f"async {ADD}", True), ("def\tadd (a):", True),
        ("    " + ADD, False), ("def adder(a):", False), ("# def add", False), ("add = 1", False),
    ],
)  # fmt: skip
def test_defines(code: str, is_there: bool) -> None:
    assert defines(code, "add") is is_there


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (ADD, ADD),
        (f"Sure, here it is.\n\n{ADD}\n\nIt adds.", ADD),
        (f"Use this:\nimport math\nfrom os import path\nX = 3\n\n{ADD}\nprint(add(1, 2))",
         f"import math\nfrom os import path\nX = 3\n\n{ADD}"),
        (f"From what I know\nfrom there on:\n{ADD}", ADD),
        (f"@cache\n{ADD}\n\n\ndef b():\n    pass", f"@cache\n{ADD}\n\n\ndef b():\n    pass"),
        ("    def add(a, b):\n        return a + b", ADD),
        ("def add(\n    a, b\n):\n    return a\nend", "def add(\n    a, b\n):\n    return a"),
        ("I would write def add(a, b)", None),
        ("", None),
    ],
)  # fmt: skip
def test_bare_code(text: str, code: str | None) -> None:
    assert bare_code(text, ("add",)) == code


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (f"import sys\nsys.setrecursionlimit(99)\n{ADD}", None), (f"N: int = 2\n{ADD}", None),
        (f"A, B = 1, 1\n{ADD}", None), (f'"""\nAdds.\n"""\n{ADD}', None),
        (f"L = [\n1,\n]\n{ADD}", None), (f"{ADD}\nassert add(1, 2) == 3", None),
        ("  x = 1\n  y = 2", "x = 1\ny = 2"),
        (f"Sure\n{ADD}", ADD), (f"Sure, here\n{ADD}", ADD), (f"Note: short\n{ADD}", ADD),
        (f"Here is add\n{ADD}\nadd", ADD), (f"Here it is:\n{ADD}", ""), ("def", ""), ("Sure", ""),
        (f"X = 1; add\n{ADD}", None), (f"{ADD}\nreturn False", ""), (f"{ADD}\nyield 1", ""),
    ],
)  # fmt: skip
def test_a_whole_module_is_python_without_words(text: str, code: str | None) -> None:
    assert whole_module(text) == (text if code is None else code or None)


@pytest.mark.parametrize(
    "tail",
    [
        "add(1, 2)", "main()", "assert add(1, 2) == 4", "for t in tests:\n    print(t)", "O(n)",
        "while True:\n    pass", "if True: add(1, 2)", "'done'\nadd(1, 2)\nadd(2, 2)",
    ],
)  # fmt: skip
def test_a_module_without_what_it_runs_at_its_end(tail: str) -> None:
    """It may fail, and no test of others needs it; what binds a name or a value stays."""
    head = f"print(1)\nimport sys\n@sys.call\n{ADD}"
    assert without_tail(f"{head}\n{tail}") == head
    kept = f"{head}\n{tail}\nif True:\n    K = 1"
    assert without_tail(kept) == kept
    assert without_tail(f"{head}; K = 2; add(1, 2)") == f"{head}; K = 2; add(1, 2)"


def test_bodies() -> None:
    assert as_body("return 1") == "    return 1"
    assert as_body("\n  return 1") == "\n  return 1"
    assert as_body("if a:\n    b\n\nc") == "    if a:\n        b\n\n    c"
    assert begins_indented("\n\n\treturn 1")
    assert not begins_indented("return 1\n    x")
    assert not begins_indented(" \n")


def test_imports_of_the_future_go_first() -> None:
    future = "from __future__ import annotations\n"
    whole = joined("import os\n\n\n", f"{future}{ADD}\n")
    assert whole == f"{future}import os\n{ADD}\n"
    assert parsed(whole) is not None
    compile(whole, "whole", "exec")
    assert joined("", ADD) == ADD + "\n"


@pytest.mark.parametrize("text", ["\\d", "0if 1else 2", "x is 1"])
def test_parsing_warns_of_nothing(text: str) -> None:
    parsed(f"'{text}'")
    parsed(text)


@pytest.mark.parametrize(
    "text", ["def", "\0", "(" * 500, "-" * 50_000 + "1", "\ud800", "x=" * 9999]
)
def test_what_is_not_python_is_not_parsed(text: str) -> None:
    assert parsed(text) is None


@given(st.text() | st.text(alphabet="`~\\boxed{}#def add():\n 1,.$-"))
def test_every_reader_takes_any_text(text: str) -> None:
    for block in code_blocks(text):
        assert block.language == block.language.lower()
    inside = last_boxed(text)
    assert inside is None or inside in text
    number = last_number(text)
    assert number is None or number in text
    block_defining(text, ("add",))
    bare_code(text, ("add", "d"))
    first_block(text)
    whole_module(text)
    parsed(as_body(text))
    joined(text, text)


@pytest.mark.parametrize(
    "piece",
    [
        "<think>",
        "</think>",
        "\\boxed{",
        "{",
        "```\n",
        "```python\n",
        "def add():\n",
        "    ",
        "$.,",
        "-",
        "a\n",
        "`",
    ],
)
def test_time_is_linear_in_the_text(piece: str) -> None:
    text = piece * (200_000 // len(piece))
    began = time.process_time()
    without_thoughts(text)
    last_boxed(text)
    last_number(text)
    block_defining(text, ("add",))
    bare_code(text, ("sub",))
    bare_code(text, ("add",))
    whole_module(text)
    assert time.process_time() - began < 5.0
