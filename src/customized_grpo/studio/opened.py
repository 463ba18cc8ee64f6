"""What the page shows: the built-in model, or runs; their checkpoints, and what their folders hold right now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from customized_grpo.config import CONFIG, RunConfig, load_config
from customized_grpo.errors import UsageError
from customized_grpo.fields import BUILT_IN as BUILT_IN_MODELS
from customized_grpo.fields import CRITTERS
from customized_grpo.files.adapter_places import FINAL, bests_of, checkpoints_of, update_of
from customized_grpo.report.album import Album
from customized_grpo.report.content import Part
from customized_grpo.report.folders import KINDS, distinct_names, kind_of, read_parts
from customized_grpo.report.page import pictures_of

RUNS = Path("runs")  # where recipes put their runs
BUILT_IN = "built-in model"
LOGS = ("metrics.jsonl", "evaluations.jsonl", "summary.json")


@dataclass(frozen=True)
class Opened:
    """The built-in model (without folders), or a run.

    folder  as the user named it: of the run, or of the demo that holds it
    run     of the run
    """

    name: str
    config: RunConfig
    folder: Path | None = None
    run: Path | None = None

    @property
    def built_in(self) -> bool:
        """Whether the model is the package's own, which takes a moment on a CPU."""
        return self.config.model.path in BUILT_IN_MODELS

    @property
    def updates(self) -> int:
        """Updates that the run is to have in all, as its folder says now: a run can be made longer."""
        return self.config.updates if self.run is None else load_config(str(self.run)).updates

    def checkpoints(self) -> dict[str, Path]:
        """Adapters by what they are called, in order of their updates."""
        if self.run is None:
            return {}
        saved = {update_of(path): (f"update {update_of(path)}", path) for path in checkpoints_of(self.run)}
        for best in bests_of(self.run):
            saved.setdefault(update_of(best), (f"update {update_of(best)}, the best", best))
        final = self.run / FINAL
        if (final / CONFIG).is_file() and (update := load_config(str(final)).updates) not in saved:
            saved[update] = (f"update {update}, the last", final)
        return dict(saved[update] for update in sorted(saved))


def open_folders(folders: Sequence[Path]) -> tuple[list[Opened], str]:
    """What to show, and why in a few words. Without folders: the newest run in ./runs, or else the built-in model.

    Raises UsageError or ReportError for a folder that is neither a run nor a demo, ConfigError for a damaged run.
    """
    if folders:
        paths = list(dict.fromkeys(folders))
        opened = [_open(path, name) for path, name in zip(paths, distinct_names(paths), strict=True)]
        return opened, ", ".join(each.name for each in opened)
    if (newest := newest_run(RUNS)) is not None:
        return [_open(newest, str(newest))], f"{newest}, the newest run in ./{RUNS}"
    return [Opened(BUILT_IN, load_config(CRITTERS, []))], f"the {BUILT_IN} without an adapter: no run in ./{RUNS}"


def _open(folder: Path, name: str) -> Opened:
    kind = kind_of(folder)
    if kind not in ("run", "demo"):
        raise UsageError(f"{folder} is the folder of a {kind}; name the folder of a run or a demo")
    run = folder / "run" if kind == "demo" else folder
    return Opened(name, load_config(str(run / CONFIG)), folder, run)


def newest_run(folder: Path) -> Path | None:
    """The run, or the demo, in a folder of runs that was written to last."""
    found = [each for each in sorted(folder.glob("*")) if KINDS["demo"](each) or KINDS["run"](each)]
    found += [each for each in sorted(folder.glob("*/run")) if KINDS["run"](each) and each.parent not in found]
    return max(found, key=_last_written, default=None)


def _last_written(folder: Path) -> float:
    files = [path for path in (folder / "environment.json", *map(folder.joinpath, LOGS)) if path.is_file()]
    return max((file.stat().st_mtime for file in files), default=0.0)


# --- the content of a run's folder, while it may still grow ----------------------------------------------------------


@dataclass
class Live:
    """The parts of a report for the folders of runs, read again only when their files have changed."""

    _known: dict[Path, tuple[Any, Part, Album]] = field(default_factory=dict)

    def __call__(self, opened: Opened) -> tuple[Part, Album] | None:
        """What a report on this run would show, and its pictures; None without a run.

        Raises InputError if a file is damaged.
        """
        if opened.folder is None:
            return None
        state = self.state(opened)
        known = self._known.get(opened.folder)
        if known is None or known[0] != state:
            part = read_parts([opened.folder])[0]
            album = Album(pictures_of(part))
            if known is not None and known[0]["pictures"] == state["pictures"]:
                album = known[2]  # a row was added to a log: no need to read pictures again
            self._known[opened.folder] = known = state, part, album
        return known[1], known[2]

    def state(self, opened: Opened) -> dict[str, Any]:
        """Changes whenever the folder has something new to show; `pictures` whenever it may have new pictures."""
        folder, run = opened.folder, opened.run
        if folder is None or run is None:
            return {}
        evaluations = [path for each in sorted(folder.glob("evaluation-*")) for path in (each / "summary.json",)]
        pictures = [run / "evaluations.jsonl", folder / "summary.json", *evaluations]
        return {
            "rows": [stamp(run / "metrics.jsonl"), stamp(run / CONFIG)],
            "pictures": [
                *map(stamp, pictures),
                *(stamp(path / "cases.json") for path in sorted((run / "images").glob("eval-*/"))),
            ],
            "checkpoints": list(opened.checkpoints()),
        }


def stamp(file: Path) -> tuple[str, int, int] | None:
    """Changes whenever the file is written; None while there is none."""
    try:
        found = file.stat()
    except OSError:
        return None
    return str(file), found.st_mtime_ns, found.st_size
