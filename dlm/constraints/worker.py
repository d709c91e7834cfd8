"""Read a regular expression or a JSON schema in a process that may run out of memory or time.

Run as a program by `dlm.constraints.language`, with JSON on both sides: some expressions of a few
letters have more states than memory holds, and what builds them ends its process then.
"""

import json
import sys
from typing import Any

ENDS = 256  # stands for the end of a text beside the bytes
MARK = "\U0010ffff"
"""Stands behind every text. outlines-core 0.2.14 drops the byte that goes on from a text that is
whole already, and what an alternative would have taken behind one that it likes better; with a mark
nothing is whole before its end."""


def main(memory: int, seconds: int, most: int) -> None:
    """Answer one request of standard input: a pattern, or a schema and then its pattern."""
    limit(memory, seconds)
    import outlines_core
    from outlines_core import json_schema

    asked = json.loads(sys.stdin.read())
    try:
        pattern = asked.get("pattern")
        if pattern is None:
            pattern = json_schema.build_regex_from_schema(asked["schema"])
        answer = {"pattern": pattern, **states(outlines_core, pattern, most)}
    except (TypeError, ValueError, OverflowError) as error:
        answer = {"error": str(error).partition("\n")[0].strip()}
    sys.stdout.write(json.dumps(answer))


def limit(memory: int, seconds: int) -> None:
    """Bound this process, where the system can."""
    try:
        import resource
    except ImportError:
        return
    for kind, most in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CPU, seconds)):
        resource.setrlimit(kind, (most, most))


def states(core: Any, pattern: str, most: int) -> dict[str, Any]:
    """States with the bytes that lead from each to another, and those in which a text may end.

    Raises:
        ValueError: there are more than `most` states, or a group ends that did not begin.
    """
    check_groups(pattern)
    letters = core.Vocabulary(ENDS, {bytes([byte]): [byte] for byte in range(ENDS)})
    index = core.Index(f"(?:{pattern}){MARK}", letters)
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


def check_groups(pattern: str) -> None:
    """Refuse a group that ends before it begins, which would end the one around the pattern."""
    open_, depth, place = 0, 0, 0
    while place < len(pattern):
        sign = pattern[place]
        if sign == "\\":
            place += 1
        elif sign == "[":
            depth += 1
            place += pattern.startswith("^", place + 1)
            place += pattern.startswith("]", place + 1)  # stands for itself there
        elif sign == "]" and depth:
            depth -= 1
        elif sign in "()" and not depth:
            open_ += 1 if sign == "(" else -1
        if open_ < 0:
            raise ValueError(f"its group at character {place + 1} ends before it begins")
        place += 1


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
