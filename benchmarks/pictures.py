"""A plotly figure as PNG through a headless Chromium; without one the page itself is kept."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

import plotly.graph_objects as go

_BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def write_picture(figure: go.Figure, target: Path) -> None:
    """Write ``target`` (PNG) in the figure's own size, or an HTML page beside it where no Chromium is on the path."""
    browser = next(filter(None, map(shutil.which, _BROWSERS)), None)
    size = f"{figure.layout.width + 20},{figure.layout.height + 20}"
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        figure.write_html(page, include_plotlyjs=True, config={"displayModeBar": False})
        if browser is None:
            shutil.copy(page, target.with_suffix(".html"))
            print(f"no Chromium on the path: {target.with_suffix('.html')} has the picture")
            return
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=8000"]
        command = [browser, *options, f"--window-size={size}", f"--screenshot={target.resolve()}", page.as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
    print(f"picture: {target}")
