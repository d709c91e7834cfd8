"""Read a regular expression or a JSON schema in a process that may run out of memory or time.

Run as a program by `dlm.constraints.language`, with JSON on both sides: some expressions of a few
letters have more states than memory holds, and what builds them ends its process then.
"""

import json
import sys
from typing import Any

ENDS = 256  # stands for the end of a text beside the bytes


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
        ValueError: there are more than `most` states.
    """
    letters = core.Vocabulary(ENDS, {bytes([byte]): [byte] for byte in range(ENDS)})
    index = core.Index(pattern, letters)
    transitions = index.get_transitions()
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
        "final": sorted(index.get_final_states()),
    }


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
