"""The manifest: what makes a directory a finished artifact.

A stage fills a directory and writes ``manifest.json`` last, by atomic rename: present means finished. Before that the
directory holds ``unfinished.json`` with the fingerprint of the work in progress, so that a rerun knows whether it may
resume. ``location`` lets a run reference an equal artifact of another run instead of making it again.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import xxhash

from deepen.errors import DamageError, RunError
from deepen.formats.files.atomic import FileEntry, write_bytes, write_json
from deepen.formats.files.json_text import read_model, read_object
from deepen.formats.workers import Workers
from deepen.plug import identity
from deepen.settings import VERSION, Many, Settings

MANIFEST = "manifest.json"
UNFINISHED = "unfinished.json"
_UNFINISHED_KEYS = ("stage", "format", "fingerprint", "config", "inputs", "started")


class InputEntry(Settings):
    """What a stage was made from: where it was found and its fingerprint."""

    path: str
    fingerprint: str


class CodeVersion(Settings):
    """The code that made an artifact: package version, and commit if it ran from a checkout."""

    version: str
    commit: str | None = None
    dirty: bool | None = None


class Manifest(Settings):
    """Contents of ``manifest.json``."""

    stage: str
    format: int
    fingerprint: str
    core: str | None = None
    """Fingerprint that the result would have without what only came after training (probes that are not measured
    during it); None: the same. Two results with one core differ in nothing else."""
    config: dict[str, Any]
    """Non-default configuration values, as they entered the fingerprint."""
    inputs: dict[str, InputEntry]
    files: Many[FileEntry] = ()
    counts: dict[str, Any] = {}
    code: CodeVersion
    started: str
    finished: str
    location: str | None = None
    """Set in a reference: the directory (relative to this one) that really holds the files."""
    digest: str | None = None
    """xxh3-128 of all the rest, since nothing else holds the hash of a manifest; None in those of version 0.1."""


@dataclass(frozen=True)
class Artifact:
    """A finished stage directory: ``path`` is where its files really are."""

    path: Path
    manifest: Manifest

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the work that made it."""
        return self.manifest.fingerprint

    @property
    def core(self) -> str:
        """The part of its identity that training depends on."""
        return self.manifest.core or self.manifest.fingerprint

    @property
    def counts(self) -> dict[str, Any]:
        """The numbers its stage reported."""
        return self.manifest.counts


@dataclass(frozen=True)
class StageJob:
    """What the workflow hands to every stage: where to write, from what, and under which identity."""

    out: Path
    """The directory that the stage fills."""
    fingerprint: str
    inputs: Mapping[str, Artifact] = field(default_factory=dict)
    """Finished earlier stages by name."""
    raw_inputs: Mapping[str, InputEntry] = field(default_factory=dict)
    """Inputs that are no stages: source files, base model."""
    workers: int | Workers = 1
    """Processes that the stage may use, or where else its parts run."""
    seed: int = 17
    previous: Artifact | None = None
    """The finished result that this work will replace; what is unchanged in it may be taken over."""
    identity: Mapping[str, Any] | None = None
    """Everything of the recipe that entered the fingerprint, where that is more than the stage's own settings."""
    core: str | None = None
    """The core of the fingerprint, where it is another; see ``Manifest.core``."""
    marks: Mapping[str, str] = field(default_factory=dict)
    """Identities of earlier stages as they entered the fingerprint, where those are not their fingerprints."""


def fingerprint(stage: str, format_number: int, config: Any, inputs: Mapping[str, str]) -> str:
    """Identity of a stage's result: name, FORMAT, non-default settings, plug versions and input fingerprints."""
    parts = {"stage": stage, "format": format_number, "config": identity(config), "inputs": dict(inputs)}
    # Only one way to write it: equal settings must give equal text.
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _identity(job: StageJob, config: Any) -> dict[str, Any]:
    return dict(identity(config) if job.identity is None else job.identity)


def begin_stage(job: StageJob, *, stage: str, format_number: int, config: Any) -> str:
    """Mark ``job.out`` as being worked on and return the start time (the first start, when work is resumed)."""
    job.out.mkdir(parents=True, exist_ok=True)
    # The mark of the first start stays: its fingerprint is checked before a stage resumes.
    if (begun := read_unfinished(job.out)) is not None:
        return str(begun["started"])
    started = now()
    inputs = {name: entry.model_dump(mode="json") for name, entry in _input_entries(job).items()}
    write_json(
        job.out / UNFINISHED,
        {
            "stage": stage, "format": format_number, "fingerprint": job.fingerprint,
            "config": _identity(job, config),
            "inputs": inputs, "started": started,
        } | ({} if job.core is None else {"core": job.core}),
    )  # fmt: skip
    return started


def read_unfinished(directory: Path) -> dict[str, Any] | None:
    """What ``unfinished.json`` says about the work that goes on in ``directory``, or None when there is none.

    Keys as in a manifest, up to ``inputs``, and ``started``. Raises ``DamageError`` when it cannot be read.
    """
    path = directory / UNFINISHED
    if not path.is_file():
        return None
    return read_object(path, keys=_UNFINISHED_KEYS, hint="remove this file and run its stage again")


def finish_stage(
    job: StageJob, *, stage: str, format_number: int, config: Any, files: Sequence[FileEntry], counts: dict[str, Any]
) -> Manifest:
    """Write ``manifest.json``, which makes the directory a finished artifact, and drop the unfinished mark."""
    manifest = Manifest(
        stage=stage,
        format=format_number,
        fingerprint=job.fingerprint,
        core=job.core,
        config=_identity(job, config),
        inputs=_input_entries(job),
        files=tuple(sorted(files, key=lambda entry: entry.path)),
        counts=counts,
        code=code_version(),
        started=begin_stage(job, stage=stage, format_number=format_number, config=config),
        finished=now(),
    )
    # The manifest first: a kill between the two leaves a finished artifact, whose mark nobody asks for.
    write_manifest(job.out, manifest)
    (job.out / UNFINISHED).unlink(missing_ok=True)
    return manifest


def _input_entries(job: StageJob) -> dict[str, InputEntry]:
    stages = {
        name: InputEntry(path=str(artifact.path), fingerprint=job.marks.get(name, artifact.fingerprint))
        for name, artifact in job.inputs.items()
    }
    return {**job.raw_inputs, **stages}


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write a manifest into ``directory`` atomically."""
    contents = manifest.model_dump(mode="json", exclude_none=True, exclude={"digest"})
    # Read back first: the digest is of what stands in the file, whatever Python held it as.
    contents["digest"] = _digest(json.loads(json.dumps(contents)))
    write_bytes(directory / MANIFEST, (json.dumps(contents, indent=1, ensure_ascii=False) + "\n").encode())


def _digest(contents: Mapping[str, Any]) -> str:
    text = json.dumps(contents, sort_keys=True, separators=(",", ":"))
    return xxhash.xxh3_128_hexdigest(text.encode())


def read_manifest(directory: Path) -> Manifest | None:
    """The manifest of ``directory``, or None when there is none; raises ``DamageError`` when it cannot be read."""
    path = directory / MANIFEST
    if not path.is_file():
        return None
    hint = "remove this file and run again: its stage is then not finished"
    manifest = read_model(path, Manifest, hint=hint)
    if manifest.digest is None:
        return manifest
    contents = read_object(path, hint=hint)
    if contents.pop("digest") != _digest(contents):
        raise DamageError(f"`{path}` has other contents than it was written with (digest differs)", hint=hint)
    return manifest.model_copy(update={"digest": None})  # a matter of the file


def record_of(directory: Path) -> dict[str, Any] | None:
    """Fingerprint, config and inputs of the finished or unfinished work in ``directory``; None when there is none."""
    manifest = read_manifest(directory)
    if manifest is not None:
        return manifest.model_dump(mode="json")
    return read_unfinished(directory)


def open_artifact(directory: Path) -> Artifact | None:
    """The finished artifact at ``directory``, following a reference; None when the stage is not finished."""
    manifest = read_manifest(directory)
    if manifest is None:
        return None
    if manifest.location is None:
        return Artifact(directory, manifest)
    target = (directory / manifest.location).resolve()
    found = read_manifest(target)
    if found is None or found.fingerprint != manifest.fingerprint:
        raise RunError(
            f"`{directory}` refers to `{target}`, which is gone or was made anew",
            hint=f"remove `{directory}` and run the stage again",
        )
    return Artifact(target, found)


def refer_to(directory: Path, artifact: Artifact) -> None:
    """Make ``directory`` a reference to an equal, finished artifact of another run."""
    directory.mkdir(parents=True, exist_ok=True)
    # Relative: both runs may be moved together.
    location = os.path.relpath(artifact.path.resolve(), directory.resolve())
    write_manifest(directory, artifact.manifest.model_copy(update={"location": location, "files": ()}))


@cache
def code_version() -> CodeVersion:
    """Version of this package, with the commit when it runs from a git checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return CodeVersion(version=VERSION)
    commit = _git(root, "rev-parse", "HEAD")
    status = _git(root, "status", "--porcelain", "--untracked-files=no")
    return CodeVersion(version=VERSION, commit=commit or None, dirty=None if status is None else bool(status))


def _git(root: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(root), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def now() -> str:
    """The present time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
