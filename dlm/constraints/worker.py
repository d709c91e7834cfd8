"""Compile a regular expression in a separate process, which may run out of memory or time.

`dlm.constraints.language` runs this file as a program and reads JSON from it. Some expressions of a
few characters have more states than memory holds, and the library then aborts its process.
"""

import json
import re
import sys
from contextlib import suppress
from typing import Any

ANCHORS = ("^", "$", r"\A", r"\z", r"\b", r"\B", r"\<", r"\>")
ENDS = 256  # a token id beyond all bytes, for the end of text
MARK = "\U0010ffff"
"""A marker appended to every text. outlines-core 0.2.14 stops too early: it drops the byte that
continues an already complete text, and what a less preferred alternative would have matched. With
the marker, no text is complete before its end."""


def main(memory: int, seconds: int, most: int) -> None:
    """Write the answer for the pattern on standard input."""
    limit(memory, seconds)
    import outlines_core

    try:
        answer = states(outlines_core, sys.stdin.buffer.read().decode(), most)
    except (TypeError, ValueError, OverflowError) as error:
        answer = {"error": reason(str(error))}
    sys.stdout.write(json.dumps(answer))


def reason(message: str) -> str:
    """Why a pattern is refused, without mentioning the marker, which the user does not know."""
    if "incompatible with the regex" in message:
        return "no text of it can be ended"
    return message.partition("\n")[0].strip()


def limit(memory: int, seconds: int) -> None:
    """Limit the memory and CPU time of this process, where the system can."""
    try:
        import resource
    except ImportError:
        return
    for kind, most in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CPU, seconds)):
        with suppress(OSError, ValueError):  # not every system can limit memory
            resource.setrlimit(kind, (most, most))


def states(core: Any, pattern: str, most: int) -> dict[str, Any]:
    """The automaton of a pattern: its transitions by byte, and the states in which a text may end.

    Raises:
        ValueError: there are more than `most` states, or as for `check_signs`.
    """
    check_signs(pattern)
    letters = core.Vocabulary(ENDS, {bytes([byte]): [byte] for byte in range(ENDS)})
    # In verbose mode a comment runs to the end of its line and would swallow the marker.
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
    """The state after the marker; None where the marker cannot follow."""
    for byte in MARK.encode():
        state = transitions.get(state, {}).get(byte) if state is not None else None
    return state


def check_signs(pattern: str) -> None:
    """Refuse patterns whose meaning the appended marker would change.

    A group that closes before it opens would close the group around the pattern. An end-of-text
    anchor cannot match in front of the marker, so an alternative with one would be lost.

    Raises:
        ValueError: there is such a group, or an anchor, even in a comment.
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
            if pattern.startswith(("p{", "P{"), place):  # a Unicode class name
                place = max(place, pattern.find("}", place))
        elif sign == "[":
            depth += 1
            place += pattern.startswith("^", place + 1)
            place += pattern.startswith("]", place + 1)  # literal in this place
        elif sign == "]" and depth:
            depth -= 1
        elif sign in "()" and not depth:
            open_ += 1 if sign == "(" else -1
            if sign == "(" and pattern.startswith(("?<", "?P<"), place + 1):  # a group name
                place = max(place, pattern.find(">", place))
        if open_ < 0:
            raise ValueError(f"its group at character {place + 1} ends before it begins")
        place += 1


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
