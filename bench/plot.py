"""Draws what a bench has measured: plot.py REPORT.json PLOT.svg

A row of panels for each table, a panel for each of its quantities: bars are medians, dots the single turns.
"""

import json
import statistics
import sys

import matplotlib

matplotlib.use("svg")
# Text stays text, and the same report gives the same file.
matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "lantern-bench"})
from matplotlib import pyplot  # noqa: E402  (the backend is chosen first)

BAR, DOT = "#4c78a8", "#222222"


def draw(panel, metric, rows):
    rows = [row for row in rows if metric["name"] in row["turns"]][::-1]
    turns = [row["turns"][metric["name"]] for row in rows]
    panel.barh([row["target"] for row in rows], [statistics.median(values) for values in turns], color=BAR)
    for at, values in enumerate(turns):
        panel.plot(values, [at] * len(values), "o", color=DOT, markersize=2)
    panel.set_xlim(left=0)
    panel.set_title(", ".join(filter(None, (metric["name"], metric["unit"]))), fontsize=9)
    panel.tick_params(labelsize=8)
    panel.spines[["top", "right"]].set_visible(False)


def main(report_path, plot_path):
    with open(report_path, encoding="utf-8") as file:
        tables = [table for table in json.load(file)["tables"] if table["rows"]]
    columns = max(len(table["metrics"]) for table in tables)
    height = sum(1 + 0.35 * len(table["rows"]) for table in tables)
    figure = pyplot.figure(figsize=(3.6 * columns, height), layout="constrained")
    for part, table in zip(figure.subfigures(len(tables), squeeze=False)[:, 0], tables):
        part.suptitle(table["title"], fontsize=10, x=0.01, ha="left")
        panels = part.subplots(1, columns, squeeze=False)[0]
        for panel, metric in zip(panels, table["metrics"]):
            draw(panel, metric, table["rows"])
        for unused in panels[len(table["metrics"]) :]:
            unused.set_axis_off()
    figure.savefig(plot_path, metadata={"Date": None})


if __name__ == "__main__":
    main(*sys.argv[1:])
