"""Draw the panels of the dashboard from a Prometheus: URL, SECONDS back from now, a PNG to write.

`OUTBOX_TEST_PICTURE=docs/images/dashboard.png pytest tests/monitoring/test_prometheus.py` draws the
run of that test.
"""

from __future__ import annotations

import datetime
import json
import re
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import dates, pyplot

ROOT = Path(__file__).resolve().parent.parent
DASHBOARD = ROOT / "outbox" / "monitoring" / "files" / "outbox.dashboard.json"
COLUMNS = 2


def series(url: str, expression: str, seconds: float) -> list[dict[str, Any]]:
    """Return what an expression of the dashboard gave over the last seconds."""
    text = expression.replace("$__rate_interval", "5s").replace("$group", ".*")
    now = time.time()
    query = {"query": text, "start": now - seconds, "end": now, "step": max(0.5, seconds / 300)}
    with urllib.request.urlopen(
        f"{url}/api/v1/query_range?{urllib.parse.urlencode(query)}"
    ) as answer:
        found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
    return found


def draw(url: str, seconds: float, file: Path, only: str = "doomed") -> None:
    """Draw each panel that is a time series; lines with a group label are of the group `only`."""
    panels = [
        panel
        for panel in json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
        if panel["type"] == "timeseries"
    ]
    rows = -(-len(panels) // COLUMNS)
    figure, axes = pyplot.subplots(rows, COLUMNS, figsize=(11, 2.3 * rows), layout="constrained")
    for panel, axis in zip(panels, axes.flat, strict=False):
        for target in panel["targets"]:
            for each in series(url, target["expr"], seconds):
                if each["metric"].get("group", only) != only:
                    continue
                label = re.sub(
                    r"{{(\w+)}}",
                    lambda name, each=each: each["metric"].get(name[1], ""),
                    target["legendFormat"],
                )
                times = [
                    datetime.datetime.fromtimestamp(at, datetime.UTC) for at, _ in each["values"]
                ]
                axis.plot(times, [float(value) for _, value in each["values"]], label=label)
        axis.set_title(panel["title"], fontsize=9, loc="left")
        axis.set_ylim(bottom=0)
        axis.tick_params(labelsize=7)
        axis.xaxis.set_major_formatter(dates.DateFormatter("%H:%M:%S"))
        axis.xaxis.set_major_locator(dates.AutoDateLocator(maxticks=5))
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(fontsize=7, loc="upper left")
    for axis in list(axes.flat)[len(panels) :]:
        axis.remove()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=75)


if __name__ == "__main__":
    draw(sys.argv[1], float(sys.argv[2]), Path(sys.argv[3]))
