"""``clone-rl report``: one HTML page and pictures of a run folder or of result rows."""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clone_rl.cli.options import add_command
from clone_rl.errors import BadFileError, CloneRLError
from clone_rl.files import writing

if TYPE_CHECKING:
    from clone_rl.evaluation.learning_curves import Curves
    from clone_rl.evaluation.page import Picture
    from clone_rl.evaluation.results import Results

_PAGE, _PICTURES = "report.html", ("pareto", "regret", "vf", "curves")
"""Files of a report: the page, and whichever pictures there are, as PNG."""

_MOST_MAPS = 12
"""Controllers whose operating points are drawn."""


def add(commands: Any) -> None:
    """The parser of ``clone-rl report``."""
    text = "Write a page and pictures of a run folder or of a file of result rows."
    parser = add_command(commands, "report", text, report)
    parser.add_argument("run", metavar="RUN", help="run folder, or file of clone-rl evaluate --out")
    parser.add_argument(
        "--out",
        default="",
        help="folder to create, or an earlier report to replace (default: 'report' in the run folder, or ROWS-report beside "
        "the rows)",
    )


def _places(run: Path, out: str) -> tuple[Path | None, Path]:
    """The file of rows, if there is one, and the folder to create.

    Raises:
        BadFileError: There is nothing to report, or the folder exists and is no earlier report.
    """
    from clone_rl.cli.run_folder import check_output

    if not run.exists():
        raise BadFileError(
            f"no such run folder or rows file: {run}", "give a folder of clone-rl train, or a file of clone-rl evaluate --out"
        )
    if run.is_dir():
        rows, folder = next((p for p in (run / "rows.csv", run / "rows.json") if p.exists()), None), run / "report"
    else:
        rows, folder = run, run.with_name(f"{run.stem}-report")
    folder = Path(out) if out else folder
    return rows, folder if _ours(folder) else check_output(folder)


def _ours(folder: Path) -> bool:
    """Whether a path is a report that this command made, with nothing of anybody else's in it."""
    from clone_rl.evaluation.page import MARK

    if folder.is_symlink() or not folder.is_dir():
        return False
    if {path.name for path in folder.iterdir()} - {_PAGE, *(f"{name}.png" for name in _PICTURES)}:
        return False
    try:
        return MARK in (folder / _PAGE).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False


def report(options: argparse.Namespace) -> dict[str, Any]:
    """``clone-rl report``."""
    from clone_rl.cli.run_folder import read_command, read_config
    from clone_rl.evaluation.learning_curves import event_folder, read_curves
    from clone_rl.evaluation.page import page
    from clone_rl.evaluation.results import gather
    from clone_rl.evaluation.rows import read_rows

    run = Path(options.run)
    rows_file, folder = _places(run, options.out)
    rows = read_rows(rows_file) if rows_file else []
    results = gather(rows, str(rows_file)) if rows else None
    events = event_folder(run) if run.is_dir() else None
    curves = read_curves(events) if events else None
    if results is None and curves is None:
        raise BadFileError(
            f"{run} holds neither rows.csv nor event files", "finish the training, or give rows of clone-rl evaluate --out"
        )
    commands = list(results.commands) if results else []
    limits: dict[str, float] = {}
    if run.is_dir():
        if (run / "command.txt").exists():
            commands = list(dict.fromkeys([read_command(run), *commands]))
        if (run / "config.json").exists():
            config = read_config(run).get("train", {})
            limits = {name: config[name] for name in ("max_miss", "max_disagree", "max_dnll") if config.get(name) is not None}
    notes = [] if results else ["The run has no result rows: it has not finished."]
    pictures = _pictures(results, curves, limits, rows, rows_file, notes)
    if rows_file:
        notes.append(
            f"Every number above comes from {rows_file.name}; clone-rl validate rows {rows_file} runs each row again."
        )
    title = (
        f"{run.name}: {results.setting['scenario']}, {results.setting['split']} split" if results else f"{run.name}: training"
    )
    _write(folder, page(title, results, pictures, curves, commands, notes), pictures)
    files = [str(folder / _PAGE), *(str(folder / f"{p.name}.png") for p in pictures.values())]
    if not options.json:
        print(*files, sep="\n")
    best, setting = (results.best, results.told.as_json()) if results else ("", None)
    return {"files": files, "best": best, "setting": setting, "summary": results.summary if results else [], "notes": notes}


def _pictures(
    results: Results | None,
    curves: Curves | None,
    limits: Mapping[str, float],
    rows: list[dict[str, Any]],
    rows_file: Path | None,
    notes: list[str],
) -> dict[str, Picture]:
    """Whatever can be drawn; what cannot is noted."""
    from clone_rl.evaluation.learning_curves import draw_curves
    from clone_rl.evaluation.page import Picture
    from clone_rl.evaluation.pareto_figure import draw_pareto
    from clone_rl.evaluation.regret_figure import draw_regret, measured
    from clone_rl.evaluation.replay import groups
    from clone_rl.evaluation.theme import drawn
    from clone_rl.evaluation.vf_map import COLUMNS, draw_vf_maps, vf_map

    found: dict[str, Picture] = {}
    if results and rows_file:
        found["pareto"] = Picture(
            "pareto",
            "Energy against late tokens, disagreement and dNLL",
            "Bars are 95 % intervals, dashed lines limits, hollow markers break a constraint; the ring is the winner and the "
            "line the Pareto front of those that hold all. Who uses far more energy stands on the dotted line, "
            "named with it (uJ). An axis with values far beyond its limit is logarithmic there.",
            drawn(lambda figure, theme: draw_pareto(figure, theme, results), 12.5, 4.8),
        )
        if shown := measured(results.summary):
            found["regret"] = Picture(
                "regret",
                "Regret by controller, in its parts",
                "Whiskers are 95 % intervals of the whole. Pale bars break a constraint.",
                drawn(lambda figure, theme: draw_regret(figure, theme, shown), 10.5, 1.6 + 0.5 * len(shown)),
            )
        else:
            notes.append("No regret was measured (clone-rl evaluate without --no-oracle measures it).")
        try:
            again = groups([row for row in rows if row["mode"] == results.mode], rows_file)[:_MOST_MAPS]
            maps = [one for group in again if (one := vf_map(group))]
        except CloneRLError as error:
            maps = []
            notes.append(f"Operating points by layer are not drawn: {error}")
        if maps:
            columns, lines = min(COLUMNS, len(maps)), -(-len(maps) // COLUMNS)
            found["vf"] = Picture(
                "vf",
                "Share of decoded tokens by operating point and layer",
                f"What runs each decoder layer of decoded tokens, in {maps[0].requests} requests run again; the top line is "
                "the share that had left before the layer.",
                drawn(lambda figure, theme: draw_vf_maps(figure, theme, maps), 2.6 + 3.4 * columns, 1.2 + 2.4 * lines),
            )
    if curves:
        known = curves
        found["curves"] = Picture(
            "curves",
            "Learning curves",
            "The most probable actions on the training requests, and the best policy so far. Dashed lines are limits; an "
            "early value far from where a curve settles is marked at the frame and told above it.",
            drawn(lambda figure, theme: draw_curves(figure, theme, known, limits), 12.5, 6.2),
        )
    return found


def _write(folder: Path, text: str, pictures: Mapping[str, Picture]) -> None:
    """Write page and pictures; the folder appears complete or not at all, in the place of an earlier report."""
    aside, before = (folder.with_name(f".{folder.name}.{os.getpid()}{end}") for end in ("", ".before"))
    try:
        with writing(folder, aside):
            aside.mkdir()
            (aside / _PAGE).write_text(text, encoding="utf-8")
            for picture in pictures.values():
                (aside / f"{picture.name}.png").write_bytes(picture.png["light"])
            if folder.exists():
                folder.rename(before)
            aside.rename(folder)
    finally:
        if before.exists() and not folder.exists():
            before.rename(folder)
        for path in (aside, before):
            shutil.rmtree(path, ignore_errors=True)
