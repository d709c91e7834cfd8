"""Plot a learned schedule; needs matplotlib, from the extra `plot`."""

import json
from pathlib import Path

from dlm.decoders.artefact import ScheduleArtefact
from dlm.plotting import pyplot

WIDTH, HEIGHT = 9.0, 3.2  # inches


def draw(artefact: ScheduleArtefact, path: Path) -> None:
    """Write the plot of a learned schedule.

    The left panel shows the tokens and the logit scale of each forward pass. The right panel shows,
    for each plan that was tried, the realised error against the error predicted by its table.

    Args:
        artefact: with the training record of `dlm distill schedule`.
        path: output file, .svg or another format of matplotlib.

    Raises:
        ValueError: matplotlib is missing.
    """
    plt = pyplot("--plot")
    training = json.loads(artefact.training)
    with plt.rc_context({"svg.hashsalt": artefact.checksum}):
        figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, HEIGHT), layout="constrained")
        forwards = range(1, len(artefact.reveal) + 1)
        left.bar(forwards, artefact.reveal, color="tab:blue")
        left.set(xlabel="forward of a block", ylabel="tokens revealed", ylim=(0, None))
        scale = left.twinx()
        scale.plot(forwards, artefact.logit_scale, "o-", color="tab:orange", markersize=3)
        scale.set(ylabel="logit scale", ylim=(0, 2.1))
        most = 0.0
        for each in training["candidates"]:
            point = (100 * each["predicted"], 100 * each["realised"])
            most = max(most, *point)
            marker = "s" if each["scaled"] else "o"
            right.plot(*point, marker, color="tab:blue", fillstyle="none")
            label = each["name"] + (", scaled" if each["scaled"] else "")
            right.annotate(label, point, fontsize=7, xytext=(4, 2), textcoords="offset points")
        right.plot((0, most), (0, most), color="0.7", linewidth=1)
        right.set(xlabel="tokens wrong, predicted (%)", ylabel="realised (%)")
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
        plt.close(figure)
