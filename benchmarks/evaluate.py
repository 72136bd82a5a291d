"""What measuring costs: time during a real training against its budget, and memory against vocabulary and documents.

- A real run with `evaluate.overhead: 3%` (a tiny base on medical text, four measurements). Bar: what measuring took,
  its sizing and first call included, is within 3 % of the training time.
- Peak memory of scoring held-out documents over that of the loaded model, in a process each. Bars: ten times the
  documents add at most 8 MB; at 150,000 tokens of vocabulary it stays below a third of the logits of one batch, of
  which 512 rows exist at a time.

`python benchmarks/evaluate.py`; the first part needs DEEPEN_TEST_DATA. Each bar prints PASS or FAIL, and the exit code
says whether all passed.
"""

from __future__ import annotations

import sys

sys.path.append(sys.path.pop(0))  # the standard library first: this folder has a `tokenize.py` too

import argparse
import json
import subprocess
import time
from pathlib import Path

import numpy as np
import torch
from tiny_runs import recipe, run, write_texts
from transformers import LlamaConfig, LlamaForCausalLM

from deepen.evaluate.documents.windows import Encoded, likelihoods
from deepen.formats.files.records import read_records
from deepen.formats.manifest import open_artifact
from deepen.model.loss.model import LossModel

OVERHEAD = 0.03
SMALL, LARGE = 1_000, 150_000
DOCUMENTS, DOCUMENT_TOKENS, CONTEXT = 64, 300, 256
_BATCH_TOKENS = 4096
"""Rows x longest window of a batch on a CPU (`deepen/evaluate/held_out.py`)."""
passed: list[bool] = []


def judge(what: str, good: bool) -> None:
    """Print whether a bar was met, and remember it."""
    passed.append(good)
    print(f"  {'PASS' if good else 'FAIL'}  {what}", flush=True)


def overhead(runs: Path, steps: int, documents: int) -> None:
    """The realised share of measuring in a real run."""
    texts = write_texts(runs / "texts", documents=documents, seed=1)
    changes = {
        "train.tokens": 2048 * steps, "train.batch_tokens": 2048, "mix.domain_share": 0.7, "evaluate.every": "25%",
        "evaluate.overhead": OVERHEAD, "evaluate.probes": [{"use": "held_out", "context": 256}],
        "curate.held_out": {"share": 0.15, "at_least": 100, "cap": 120_000},
    }  # fmt: skip
    directory = run(recipe(texts, f"overhead-{steps}", changes), runs, "--until", "evaluate")
    artifact = open_artifact(directory / "evaluate")
    assert artifact is not None, "the run is finished"
    counts = artifact.counts["in_loop"]
    probes = directory / "train/probes"
    subsets = json.loads((probes / "subsets.json").read_text())
    sizing = subsets["sizing"]
    seconds = [record["seconds"] for record in read_records(probes / "times.jsonl")]
    print(f"subsets have {sizing['share']:.0%} of their size: "
          f"{ {name: len(ids) for name, ids in subsets['ids']['held_out'].items()} } documents")  # fmt: skip
    print(f"{sizing['allowed_seconds']:.2f} s allowed each time; choosing and timing {sizing['sizing_seconds']:.2f} s; "
          f"measurements: {', '.join(f'{value:.2f}' for value in seconds)} s")  # fmt: skip
    judge(f"{counts['measurements']} measurements took {counts['seconds']:.2f} s, {counts['share_of_training']:.2%} of "
          f"the training, at most {OVERHEAD:.0%}", counts["share_of_training"] <= OVERHEAD)  # fmt: skip


def peak_of_scoring(vocabulary: int, documents: int) -> int:
    """Bytes by which scoring documents raises this process's peak over what it holds with the model loaded (Linux)."""
    torch.manual_seed(0)
    torch.set_num_threads(2)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=CONTEXT, tie_word_embeddings=True,
    )  # fmt: skip
    model = LossModel(LlamaForCausalLM(config)).eval()
    generator = np.random.default_rng(0)
    tokens = generator.integers(3, vocabulary, (documents, DOCUMENT_TOKENS), dtype=np.int32)
    encoded = [Encoded(row, 1, DOCUMENT_TOKENS) for row in tokens]
    with torch.inference_mode():
        model.token_nll(*(torch.zeros((1, 8), dtype=torch.int64) for _ in range(3)))
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
        before = _status("VmRSS")
        nll = likelihoods(model, encoded, context=CONTEXT, stride=0.5)
    assert np.isfinite(nll).all() and (nll > 0).all(), "every document is scored"
    return _status("VmHWM") - before


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def memory() -> None:
    """Peaks in processes of their own."""
    print(f"documents of {DOCUMENT_TOKENS} tokens, context {CONTEXT}; MB over the loaded model")
    peaks = {}
    for vocabulary, documents in ((SMALL, DOCUMENTS), (SMALL, 10 * DOCUMENTS), (LARGE, DOCUMENTS)):
        command = [sys.executable, __file__, "--peak-of", str(vocabulary), str(documents)]
        started = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks[vocabulary, documents] = peak = int(done.stdout)
        print(f"  vocabulary {vocabulary:>7,}, {documents:>4} documents: {peak / 1e6:,.0f} MB "
              f"({time.perf_counter() - started:.0f} s)", flush=True)  # fmt: skip
    growth = peaks[SMALL, 10 * DOCUMENTS] - peaks[SMALL, DOCUMENTS]
    judge(f"ten times the documents: {growth / 1e6:.1f} MB more, at most 8", growth <= 8e6)
    logits = _BATCH_TOKENS * LARGE * 4
    share = peaks[LARGE, DOCUMENTS] / logits
    judge(f"150 times the vocabulary: {share:.0%} of the logits of one batch ({logits / 1e6:,.0f} MB), at most 33 %",
          share <= 0.33)  # fmt: skip


def main() -> None:
    """Both parts, or the peak of one process."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--steps", type=int, default=800, help="optimizer steps of the run")
    options.add_argument("--documents", type=int, default=2_000, help="of domain and of replay")
    options.add_argument("--runs", type=Path, default=Path("runs/evaluate"), help="where the run and texts are kept")
    options.add_argument("--peak-of", type=int, nargs=2, metavar=("VOCABULARY", "DOCUMENTS"))
    given = options.parse_args()
    if given.peak_of:
        print(peak_of_scoring(*given.peak_of))
        return
    memory()
    runs = given.runs.resolve()
    runs.mkdir(parents=True, exist_ok=True)
    overhead(runs, given.steps, given.documents)
    print(f"\n{sum(passed)} of {len(passed)} bars met")
    sys.exit(0 if all(passed) else 1)


if __name__ == "__main__":
    main()
