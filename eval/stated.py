r"""Answers that are stated without a box, as in `The answer is 3\sqrt{2}.`.

math-verify finds mathematics between its delimiters. If there are none, it reads the first number:
the 3 of `3\sqrt{2}`. Therefore a bare expression is put into a box here, and everything else is
left to math-verify.
"""

import re

SIGNS = ("$", r"\(", r"\[")

_SAID = re.compile(r"\banswers?\s*(?:(?:is|are|equals)\b\s*:?|[:=](?=[\s*]))", re.IGNORECASE)
_TEXT = re.compile(
    r"\\(?:text\w*|mbox|math\w+|operatorname)\s*\{[^{}]*\}|\\(?:begin|end)\{\w+\*?\}"
)
_WORD = re.compile(r"(?<![\\A-Za-z])(?!(?:sqrt|pi|sin|cos|tan|log|ln|or)(?![A-Za-z]))[A-Za-z]{2,}")
_MORE = re.compile(  # a number that is part of something; single letters may be units
    r"\\[A-Za-z]|[0-9}]\s*(?:[*^!:]|sqrt|pi|or\b|[abcikntxyz](?![A-Za-z]))|[A-Za-z*^]\s*[0-9]"
)


def stated(output: str) -> str | None:
    r"""The last non-blank line, or a box with the expression that it states."""
    line = output.rstrip().rpartition("\n")[2].strip()
    plain = line.replace(r"\$", "")  # a dollar of money
    if not line or any(sign in plain for sign in SIGNS):
        return line or None
    ends = [each.end() for each in _SAID.finditer(line)]
    tail = line[ends[-1] if ends else 0 :].lstrip(" *:").rstrip(" .*:")
    alone = bool(tail) and not _WORD.search(_TEXT.sub("", tail)) and (ends or _MORE.search(tail))
    fits = tail.count("{") == tail.count("}") and "box" not in tail
    return rf"\boxed{{{tail}}}" if alone and fits else line
