"""A run that an earlier version began goes on with this one: nothing finished is made again, training resumes.

``begun_by_version_before.tar.gz`` holds sources, recipe and a run of deepen 0.1 (November 2026) that was killed while
it wrote the checkpoint of step 3. The fingerprints are those that the same version gave when it finished a copy.
"""

import json
import tarfile
from pathlib import Path

import pytest

from deepen.formats.manifest import read_manifest
from deepen.recipe.reading import load
from deepen.workflow.run import RunOptions, run_pipeline

FINGERPRINTS = {
    "ingest": "ed07846ca31d28e031acfcc51014601b",
    "curate": "c4b97b451bd149c2d9a941f8587a7542",
    "tokenize": "b21b3aa4a3f721d3e186b8afbc64521f",
    "mix": "3bef64124ef997e22fc59ba45b070813",
    "baseline": "f1b80861fa236b14dd5e5ac415ba9de6",
    "train": "89af58cc1baa66db1077040d47bca57d",
    "evaluate": "2492cfafd6d38d66f16accb0b8ad4f11",
    "select": "46b86c0b2a6c5685dc292d8081753a0c",
    "export": "a1c6ebe89f2ff7b3ade7d179959c9b3c",
}
LAST_LOSS = 4.987945872858951


@pytest.fixture
def begun(tmp_path, monkeypatch):
    with tarfile.open(Path(__file__).with_name("begun_by_version_before.tar.gz")) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_run_of_the_version_before_goes_on(begun, capfd):
    before = {path: path.stat().st_mtime_ns for path in (begun / "runs/begun/mix").rglob("*") if path.is_file()}
    loaded = load(Path("recipe.yaml"), Path("machine.yaml"), [])
    made = run_pipeline(loaded.recipe, loaded.machine, Path("runs/begun"), RunOptions(offline=True))
    said = capfd.readouterr().err
    assert [f"{name} is up to date" in said for name in FINGERPRINTS] == [True] * 5 + [False] * 4
    assert "train: resuming" in said
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert {name: read_manifest(made[name].path).fingerprint for name in FINGERPRINTS} == FINGERPRINTS
    records = [json.loads(line) for line in Path("runs/begun/train/metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(1, 11))
    assert records[-1]["loss"] == pytest.approx(LAST_LOSS, rel=1e-6)  # the last bits are the processor's
