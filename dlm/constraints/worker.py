"""Read a regular expression in a process that may run out of memory or time.

Run as a program by `dlm.constraints.language`, which reads JSON from it: some expressions of a few
letters have more states than memory holds, and what builds them ends its process then.
"""

import json
import re
import sys
from contextlib import suppress
from typing import Any

ANCHORS = ("^", "$", r"\A", r"\z", r"\b", r"\B", r"\<", r"\>")
ENDS = 256  # stands for the end of a text beside the bytes
MARK = "\U0010ffff"
"""Stands behind every text. outlines-core 0.2.14 drops the byte that goes on from a text that is
whole already, and what an alternative would have taken behind one that it likes better; with a mark
nothing is whole before its end."""


def main(memory: int, seconds: int, most: int) -> None:
    """Answer for the pattern that is standard input."""
    limit(memory, seconds)
    import outlines_core

    try:
        answer = states(outlines_core, sys.stdin.buffer.read().decode(), most)
    except (TypeError, ValueError, OverflowError) as error:
        answer = {"error": reason(str(error))}
    sys.stdout.write(json.dumps(answer))


def reason(message: str) -> str:
    """Why a pattern is not followed, without the mark that its author does not know of."""
    if "incompatible with the regex" in message:
        return "no text of it can be ended"
    return message.partition("\n")[0].strip()


def limit(memory: int, seconds: int) -> None:
    """Bound this process, where the system can."""
    try:
        import resource
    except ImportError:
        return
    for kind, most in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CPU, seconds)):
        with suppress(OSError, ValueError):  # not every system bounds memory
            resource.setrlimit(kind, (most, most))


def states(core: Any, pattern: str, most: int) -> dict[str, Any]:
    """States with the bytes that lead from each to another, and those in which a text may end.

    Raises:
        ValueError: there are more than `most` states, or as `check_signs`.
    """
    check_signs(pattern)
    letters = core.Vocabulary(ENDS, {bytes([byte]): [byte] for byte in range(ENDS)})
    # Where spaces mean nothing a comment goes on to the end of its line.
    end = "\n" if re.search(r"\(\?[a-zA-Z]*x", pattern) else ""
    index = core.Index(f"(?:{pattern}{end}){MARK}", letters)
    transitions, final = index.get_transitions(), index.get_final_states()
    if len(transitions) > most:
        raise ValueError(f"it has {len(transitions)} states, and at most {most} are followed")
    edges = [
        [state, byte, target]
        for state, targets in transitions.items()
        for byte, target in targets.items()
        if byte != ENDS
    ]
    return {
        "start": index.get_initial_state(),
        "edges": edges,
        "final": [state for state in transitions if behind(transitions, state) in final],
    }


def behind(transitions: dict[int, dict[int, int]], state: int | None) -> int | None:
    """The state behind the mark; None where it cannot stand."""
    for byte in MARK.encode():
        state = transitions.get(state, {}).get(byte) if state is not None else None
    return state


def check_signs(pattern: str) -> None:
    """Refuse what the mark behind the pattern would change the meaning of.

    A group that ends before it begins would end the one around the pattern, and the end of a text
    is none in front of the mark: the alternative that asks for it would be lost.

    Raises:
        ValueError: there is such a group, or an anchor, in a comment too.
    """
    open_, depth, place = 0, 0, 0
    while place < len(pattern):
        sign = pattern[place]
        if not depth and pattern.startswith(ANCHORS, place):
            raise ValueError(
                f"its anchor at character {place + 1} is not followed: "
                "a text is held from its first character to its last"
            )
        if sign == "\\":
            place += 1
            if pattern.startswith(("p{", "P{"), place):  # a name
                place = max(place, pattern.find("}", place))
        elif sign == "[":
            depth += 1
            place += pattern.startswith("^", place + 1)
            place += pattern.startswith("]", place + 1)  # stands for itself there
        elif sign == "]" and depth:
            depth -= 1
        elif sign in "()" and not depth:
            open_ += 1 if sign == "(" else -1
            if sign == "(" and pattern.startswith(("?<", "?P<"), place + 1):  # a name
                place = max(place, pattern.find(">", place))
        if open_ < 0:
            raise ValueError(f"its group at character {place + 1} ends before it begins")
        place += 1


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
