"""One benchmark result: a JSON line, or rows of a table."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dlm.bench.timing import Spread

Value = bool | int | float | str | None

PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"))


@dataclass(frozen=True, slots=True)
class Result:
    """The outcome of one case of a benchmark."""

    bench: str
    case: Mapping[str, Any]  # the options of the case: shape, dtype, batch, lengths, ...
    seconds: Mapping[str, Spread]  # wall time of each contender
    ratios: Mapping[str, Spread] = field(default_factory=dict)  # "a / b", computed in each round
    found: Mapping[str, Value] = field(default_factory=dict)  # other measurements
    counted: Mapping[str, Value] = field(default_factory=dict)  # computed from shapes alone

    def record(self, surroundings: Mapping[str, Any]) -> dict[str, Any]:
        """The object that `--json` prints."""
        return {
            "bench": self.bench,
            "case": dict(self.case),
            "seconds": {name: spread.record() for name, spread in self.seconds.items()},
            "ratios": {name: spread.record() for name, spread in self.ratios.items()},
            "found": dict(self.found),
            "counted": dict(self.counted),
            **surroundings,
        }

    def rows(self) -> list[list[str]]:
        """Rows of quantity, value, and least and most."""
        times = (
            [name, f"{1e3 * s.median:.4g} ms", f"{1e3 * s.least:.4g} .. {1e3 * s.most:.4g}"]
            for name, s in self.seconds.items()
        )
        quotients = (
            [name, f"{s.median:.3g}", f"{s.least:.3g} .. {s.most:.3g}"]
            for name, s in self.ratios.items()
        )
        found = ([name, shown(name, value), ""] for name, value in self.found.items())
        counted = (
            [f"counted: {name}", shown(name, value), ""] for name, value in self.counted.items()
        )
        return [*times, *quotients, *found, *counted]

    def title(self) -> str:
        """The case as one line."""
        facts = ", ".join(f"{name} {value}" for name, value in self.case.items())
        return f"{self.bench}: {facts}"


def shown(name: str, value: Value) -> str:
    """A value as text: shares in percent, large numbers with a unit prefix."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    if "share" in name:
        return f"{100 * value:.3g}%"
    for unit, prefix in PREFIXES:
        if value >= unit:
            return f"{value / unit:.3g} {prefix}"
    return str(value) if isinstance(value, int) else f"{value:.4g}"
