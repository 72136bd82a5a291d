"""What a run consists of, what it was made from, and what may be removed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from deepen.errors import RunError
from deepen.formats.files.records import read_records
from deepen.formats.manifest import InputEntry, open_artifact, read_manifest, record_of
from deepen.formats.replaced import recover_swap, remove_directory
from deepen.formats.training.roles import role_records
from deepen.runs.directory import STAGE_NAMES, check_is_run, stage_directory
from deepen.runs.lock import locked
from deepen.runs.references import make_unreferenced
from deepen.train.config import Save

State = Literal["finished", "referenced", "unfinished", "missing"]


@dataclass(frozen=True)
class StageStatus:
    """State of one stage of a run."""

    name: str
    state: State
    fingerprint: str
    finished: str
    num_bytes: int
    inputs: dict[str, InputEntry]
    detail: str
    """For referenced stages where the files are; for unfinished ones how far the work is."""
    core: str = ""
    """What the fingerprint would be without probes that only come after training."""

    @property
    def made_from(self) -> str:
        """The inputs for people, all sources in one word."""
        sources = sum(name.startswith("source:") for name in self.inputs)
        others = [name for name in self.inputs if not name.startswith("source:")]
        return " ".join([f"{sources} sources"] * bool(sources) + others)


def status(run: Path) -> list[StageStatus]:
    """The state of every stage of ``run`` in pipeline order; raises ``RunError`` when it is no run directory."""
    check_is_run(run)
    return [_stage_status(run, name) for name in STAGE_NAMES]


def _stage_status(run: Path, name: str) -> StageStatus:
    directory = stage_directory(run, name)
    manifest, record = read_manifest(directory), record_of(directory)
    if manifest is not None:
        artifact = open_artifact(directory)
        assert artifact is not None, "a manifest that was just read is gone"
        num_bytes = sum(entry.bytes for entry in artifact.manifest.files)
        state: State = "referenced" if manifest.location else "finished"
        detail = manifest.location or ""
        times = manifest.fingerprint, manifest.finished
        return StageStatus(name, state, *times, num_bytes, manifest.inputs, detail, artifact.core)
    if record is None:
        return StageStatus(name, "missing", "", "", 0, {}, "")
    inputs = {key: InputEntry(**entry) for key, entry in record["inputs"].items()}
    return StageStatus(name, "unfinished", record["fingerprint"], "", 0, inputs, _how_far(directory, name))


def _how_far(directory: Path, name: str) -> str:
    if name == "train":
        steps = [record["step"] for record in read_records(directory / "metrics.jsonl")]
        return f"at step {steps[-1]}" if steps else "before step 1"
    return f"since {record['started']}" if (record := record_of(directory)) else ""


def checkpoints(run: Path) -> list[dict[str, Any]]:
    """The checkpoints of a run, finished or not: ``checkpoint``, ``roles``, ``bytes``, ``weights_only``."""
    directory = stage_directory(run, "train")
    record, artifact = record_of(directory), open_artifact(directory)
    settings = (record or {}).get("config", {}).get("train", {}).get("save", {})
    where = directory if artifact is None else artifact.path
    return role_records(where / "checkpoints", int(settings.get("keep", Save().keep)))


def remove(target: Path) -> None:
    """Remove a run or one of its stages; refuses what other runs refer to and what is no artifact of deepen."""
    run = target if (target / "recipe.yaml").is_file() else target.parent
    is_stage = run != target and target.name in STAGE_NAMES and (run / "recipe.yaml").is_file()
    if not (is_stage or run == target):
        raise RunError(f"`{target}` is neither a run nor a stage of one", hint="give runs/NAME or runs/NAME/STAGE")
    with locked(run):
        if is_stage:
            recover_swap(target)
        make_unreferenced(target, give_copies=False)
        if is_stage:
            remove_directory(target.with_name(target.name + ".redo"))
        remove_directory(target)
