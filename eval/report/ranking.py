"""Whether the ranking of decoders depends on the template."""

from collections.abc import Sequence
from itertools import combinations

from dlm.eval.report.view import Entry, View

SHOWN = 4  # changes that are listed individually


def ranking(shown: View) -> str:
    """Describe the ranking in one or two sentences; a tie under a template changes no rank."""
    common = [
        name
        for name in shown.templates
        if all(each.row(name) is not None for each in shown.entries)
    ]
    if len(shown.templates) == 1:
        return "All samples are of one template: whether others change the ranking was not tested."
    if len(shown.entries) == 1:
        scores = [row.score for row in shown.entries[0].rows]
        return f"From {min(scores):.1%} to {max(scores):.1%} under {len(scores)} templates."
    if len(common) < 2:
        return "The decoders share fewer than two templates: their ranking was not tested."
    found = changes(shown.entries, common)
    if not found:
        best = sorted(shown.entries, key=lambda each: -mean(each, common))
        order = ", ".join(each.label for each in best)
        tied = " or tied" if ties(shown.entries, common) else ""
        many = "both" if len(common) == 2 else f"all {len(common)}"
        return f"The ranking of the decoders is the same{tied} under {many} templates: {order}."
    more = f" And {len(found) - SHOWN} more." if len(found) > SHOWN else ""
    return (
        "The ranking of the decoders is not the same under every template: "
        + "; ".join(found[:SHOWN])
        + f".{more}"
    )


def changes(entries: Sequence[Entry], templates: Sequence[str]) -> list[str]:
    """Pairs of runs whose order differs between templates, with where each leads most."""
    found = []
    for one, other in combinations(entries, 2):
        leads = {name: lead(one, other, name) for name in templates}
        most, least = max(leads, key=leads.__getitem__), min(leads, key=leads.__getitem__)
        if leads[most] > 0 > leads[least]:
            found.append(
                f"{one.label} is {100 * leads[most]:.1f} points ahead of {other.label} under "
                f"{most}, {-100 * leads[least]:.1f} behind under {least}"
            )
    return found


def ties(entries: Sequence[Entry], templates: Sequence[str]) -> bool:
    """Whether two runs have equal scores under some template."""
    pairs = combinations(entries, 2)
    return any(lead(one, other, name) == 0 for one, other in pairs for name in templates)


def lead(one: Entry, other: Entry, template: str) -> float:
    """By how much one run scores better than another."""
    first, second = one.row(template), other.row(template)
    assert first is not None
    assert second is not None
    return first.score - second.score


def mean(entry: Entry, templates: Sequence[str]) -> float:
    """The mean score over some templates."""
    return sum(row.score for row in entry.rows if row.template in templates) / len(templates)
