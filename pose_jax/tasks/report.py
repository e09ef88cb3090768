"""`report`: what a workdir holds, on one page that needs nothing else: `report.html`."""

from __future__ import annotations

from typing import Any

from etils import epath

from pose_jax.config import UserError
from pose_jax.report import analyses, explanations, page
from pose_jax.writer import is_main_process, say


def run(config: Any, workdir: str) -> None:
    """Draw explanations and analyses that have no figures yet, then write `report.html`.

    Raises:
      UserError: the workdir holds nothing to report, or a file there is damaged.
    """
    if not is_main_process():
        return
    folder = epath.Path(workdir)
    try:
        for record in sorted(folder.glob("explain/*/explanations.json")):
            if _is_stale(record.parent):
                explanations.draw_folder(record.parent)
        for record in sorted(folder.glob("analysis/*/index.json")):
            if _is_stale(record.parent):
                analyses.draw_folder(record.parent)
        text = page.build(folder, config.report.title, tuple(config.report.beside))
    except ValueError as error:
        raise UserError(str(error)) from None
    path = folder / "report.html"
    path.write_text(text)
    say(f"{path} ({len(text) / 1e6:.1f} MB): open it in a browser")


def _is_stale(folder) -> bool:
    """Whether anything was written after the figures were drawn."""
    index = folder / "figures" / explanations.INDEX
    if not index.exists():
        return True
    drawn = index.stat().mtime
    sources = [*folder.glob("*.json"), *folder.glob("*.npz")]
    return any(path.stat().mtime > drawn for path in sources)
