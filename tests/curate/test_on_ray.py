"""The stage on a real Ray cluster of two nodes, one of which is killed in the middle of its work."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

STEPS = ["ray_slow:Slow", "normalize", "exact_duplicates", "near_duplicates"]

PLUG = """
import os, time
from pathlib import Path
from typing import Literal
from deepen.curate.step import DocumentStep

class Slow(DocumentStep):
    '''Waits, and notes where it worked.'''
    use: Literal["ray_slow:Slow"] = "ray_slow:Slow"
    def apply(self, document):
        if "NOTES" in os.environ:
            import ray
            node = ray.get_runtime_context().get_node_id()
            with (Path(os.environ["NOTES"]) / node).open("a") as file:
                file.write(document.id + "\\n")
            time.sleep(0.1)
        return document
"""

SCRIPT = """
import json, sys, threading, time
from pathlib import Path
from ray.cluster_utils import Cluster
from deepen.curate.config import CurateConfig
from deepen.curate.stage import curate
from deepen.formats.manifest import StageJob, open_artifact
from deepen.formats.workers import Workers

ingest, out, steps, notes = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]), Path(sys.argv[4])
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 10**8})
second = cluster.add_node(num_cpus=1, object_store_memory=10**8)
cluster.wait_for_nodes()

def begun():
    path = notes / second.node_id
    return len(path.read_text().split()) if path.is_file() else 0

def kill():
    records = out / "ledger" / "first"
    while not (records.is_dir() and len(list(records.glob("*.json"))) >= 2 and 4 <= begun() % 13 <= 9):
        time.sleep(0.02)  # until it is in the middle of a part of thirteen documents
    print(second.node_id, begun(), flush=True)
    cluster.remove_node(second, allow_graceful=False)

thread = threading.Thread(target=kill)
thread.start()
config = CurateConfig.model_validate({"steps": steps, "held_out": {"share": 0.05, "at_least": 0}})
curate(config, StageJob(out, "f", {"ingest": open_artifact(ingest)}, workers=Workers(ray=cluster.address)))
thread.join()
cluster.shutdown()
"""


NOBODY = """
from pathlib import Path
from deepen.engine.map_parts import map_parts
from deepen.formats.workers import Workers
try:
    map_parts(len, [(1,)], workers=Workers(ray="127.0.0.1:1"), ledger=Path("l"), what="w", unit="u", sizes=[1])
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.mark.slow
def test_a_lost_node_changes_no_byte(tmp_path, run, ingested, prose, same_bytes, monkeypatch):
    pytest.importorskip("ray")
    texts = [prose(seed) for seed in range(120)]
    parts = [[*texts[start : start + 12], f"{texts[0]} again {start}"] for start in range(0, 120, 12)]
    artifact = ingested({"a": ("domain", parts)})
    notes = tmp_path / "notes"
    notes.mkdir()
    (tmp_path / "ray_slow.py").write_text(PLUG)
    (tmp_path / "script.py").write_text(SCRIPT)
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    arguments = [sys.executable, "script.py", artifact.path, tmp_path / "ray", json.dumps(STEPS), notes]
    environment = {**os.environ, "PYTHONPATH": path, "NOTES": str(notes)}
    done = subprocess.run(arguments, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    killed_node, num_begun = done.stdout.split()[:2]
    begun = {path.name: path.read_text().split() for path in notes.iterdir()}
    assert len(begun) == 2 and 0 < int(num_begun) < 130
    assert set(begun[killed_node]) & set().union(*(ids for node, ids in begun.items() if node != killed_node))
    monkeypatch.syspath_prepend(tmp_path)
    counts = run(artifact, out="local", steps=STEPS, held_out={"share": 0.05, "at_least": 0})
    assert counts["a"]["dropped"]["near_duplicate"] >= 9
    assert same_bytes("local", "ray")


def test_no_cluster_is_a_clear_error(tmp_path):
    pytest.importorskip("ray")
    (tmp_path / "script.py").write_text(NOBODY)
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert done.stdout.startswith("DeepenError no Ray cluster answers"), done.stderr[-2000:]
