r"""Answers that stand in a line of prose and in no box, as in `The answer is $3\sqrt{2}`.

A line is words and runs of mathematics between them; a run is read whole, so that of `3\sqrt{2}`
or `3 x` no 3 is left. What the line leaves open, as `3 or more` does, is no answer.
"""

import re

LONGEST = 1000  # characters of a line that are looked at

_DELIMITERS = re.compile(r"(\\[^()\[\]])|\$|\\[()\[\]]")
_EMPTY_BOX = re.compile(r"\\f?boxed\s*\{\s*\}")
_STRONG = re.compile(r"(?<![\w)])\*\*|\*\*(?![\w(])")
_SAID = re.compile(r"\banswers?\s*(?:(?:is|are|equals)\b|[:=])\s*[:=]?", re.IGNORECASE)
_JOINING = re.compile(r"\\(?:text|textrm|mathrm|mbox)\s*\{\s*(or|and)\s*\}|\\(?:vee|lor)(?![a-z])")
_PIECES = re.compile(
    r"(?P<mathematics>\\(?:begin|end|text\w*|mbox|math\w+|operatorname)\s*\{[^{}]*\}"
    r"|\\[A-Za-z]+|\\.|(?:sin|cos|tan|cot|sec|csc|log|ln|exp|gcd|lcm|sqrt|pi)(?![A-Za-z]))"
    r"|(?P<word>(?<![\w^{}])(?:[A-Za-z]{2,}(?:['-][A-Za-z]+)*|[A-Za-z]'[A-Za-z]+|a(?=\s+[0-9]))"
    r"(?![\w^{(]))"
    r"|(?P<end>\.(?=\s|$))"
)
_EQUALS = re.compile(r"(?<![<>!:\\])=")
_ALONE = re.compile(r"[aAI]?")  # words, if they stand between others
_BEGINS = tuple("^_*/:!%")  # what belongs to the word in front, as in cm^2
_CLINGING = (
    *("or", "and", "times", "plus", "minus", "over", "divided", "mod", "choose"),
    *("squared", "cubed", "factorial", "hundred", "thousand", "million", "billion"),
)


def stated(output: str, *, equation: bool) -> str | None:
    """The answer that the last line of an output states, as a box would hold it, if it does.

    It is the first run behind the last `answer is`, else the last one of the line; words alone are
    taken as they stand.

    Args:
        output: text without a box.
        equation: whether an equation is an answer; else what stands behind its last sign is.
    """
    text = _DELIMITERS.sub(lambda found: found[1] or " ", _EMPTY_BOX.sub(" ", output))
    line = _STRONG.sub(" ", text.rstrip().rpartition("\n")[2])
    said = [each.end() for each in _SAID.finditer(line)]
    tail = line[said[-1] :].strip() if said else ""
    line = tail[:LONGEST] or line[-LONGEST:]
    pieces = joined(pieces_of(_JOINING.sub(lambda found: f" {found[1] or 'or'} ", line)))
    if any(word == "or" for _, word in pieces):
        return None
    runs = [run for run in map(clean, usable(pieces)) if run]
    if not runs:
        return None if re.search("[0-9]", line) else balanced(line.strip(" .,;:!"))
    found = runs[0] if tail else runs[-1]
    return balanced(found if equation else value(found))


def pieces_of(line: str) -> list[tuple[str, str]]:
    """A line as runs of mathematics, each with the word behind it; "." and "" end sentences."""
    found, start = [], 0
    for token in _PIECES.finditer(line):
        if token.lastgroup != "mathematics":
            found.append((line[start : token.start()].strip(), token.group().lower()))
            start = token.end()
    return [*found, (line[start:].strip(), "")]


def joined(pieces: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Runs with `or` or `and` between them as one list."""
    found = pieces[:1]
    for run, word in pieces[1:]:
        before, how = found[-1]
        if how in ("or", "and") and clean(before) and clean(run):
            found[-1] = f"{before.rstrip(' ,')}, {run}", word
        else:
            found.append((run, word))
    return found


def usable(pieces: list[tuple[str, str]]) -> list[str]:
    """Runs that no word beside them makes another thing of, as in `3 squared` and `3 to 7`."""
    found, before, earlier = [], "", ""
    for run, after in pieces:
        of_two = (before == "to" and earlier) or after == "to"
        if not (before in _CLINGING or after in _CLINGING or of_two):
            found.append(run)
        before, earlier = after, run
    return found


def clean(run: str) -> str:
    """A run without signs of the sentence; "" of one that is no mathematics."""
    found = run.rstrip(" \t.,;:(").lstrip(" \t,;:)")
    return "" if _ALONE.fullmatch(found) or found.startswith(_BEGINS) else found


def value(run: str) -> str:
    """What stands behind the last sign of equality, or behind those of several for one thing."""
    sides = [_EQUALS.split(each) for each in run.split(",")]
    named = {each[0].strip() for each in sides if len(each) == 2}
    if len(sides) > 1 and len(named) == 1 and all(len(each) == 2 for each in sides):
        return ", ".join(each[1].strip() for each in sides)
    return _EQUALS.split(run)[-1].strip()


def balanced(run: str) -> str | None:
    """A run, if a box could hold it: it has something in it, and each brace has its other one."""
    depth = 0
    for brace in re.findall(r"\\.?|[{}]", run):
        depth += (brace == "{") - (brace == "}")
        if depth < 0 or brace == "\\":  # which would hide the end of the box
            return None
    return run if run and not depth else None
