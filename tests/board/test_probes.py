"""What the report says of probes: failures are seen, and so is what measuring took."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from deepen.board.probes import probe_sections
from deepen.formats.manifest import Artifact, CodeVersion, Manifest


def artifact(path: Path, counts: dict[str, Any]) -> Artifact:
    path.mkdir()
    manifest = Manifest(
        stage="x", format=1, fingerprint="x", config={}, inputs={}, counts=counts, code=CodeVersion(version="0"),
        started="", finished="",
    )  # fmt: skip
    return Artifact(path, manifest)


def stages(root: Path, unit: str, failed: dict[str, Any]) -> dict[str, Artifact]:
    exam = {"items": 90, "cut": 31, "not_used": {"no_json": 2}, "examples": {"no_json": ["line 4"]}}
    base = {"failed": failed, "probes": {"exam": exam}}
    in_loop = {
        "share_of_training": 0.021,
        "overhead": 0.03,
        "failed": {"exam": {"7": "OSError: gone"}} if failed else {},
    }
    found = {"baseline": artifact(root / "baseline", base)}
    found["evaluate"] = artifact(root / "evaluate", {"failed": {}, "in_loop": in_loop})
    score = {"probe": "exam", "ability": "new", "unit": unit, "value": 0.5, "baseline": 0.25,
             "difference": 1.0, "higher_is_better": True, "items": 4}  # fmt: skip
    (root / "evaluate" / "scores.jsonl").write_text(json.dumps({"step": 5, "tokens": 50, "scores": [score]}) + "\n")
    return found


def test_failures_and_what_was_not_used_are_in_the_report(tmp_path: Path) -> None:
    (section,) = probe_sections(stages(tmp_path, "accuracy", {"bad": "took longer than its limit"}))
    assert "2 measurements FAILED" in section.lead
    for text in (
        "took longer than its limit",
        "step 7, during training",
        "no_json",
        "line 4",
        "beginning cut off",
        "31",
    ):
        assert text in section.body


def test_held_out_text_alone_needs_no_section(tmp_path: Path) -> None:
    assert list(probe_sections(stages(tmp_path, "bits per byte", {}))) == []
