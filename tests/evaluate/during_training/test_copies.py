"""Scoring with several copies of a model: the same bits, and errors that reach whoever measures."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from deepen.evaluate import stage
from deepen.evaluate.config import EvaluateConfig
from deepen.evaluate.during_training.guard import Failure, attempt
from deepen.evaluate.stage import baseline, evaluate
from deepen.formats.files.records import read_records
from deepen.formats.manifest import Artifact, StageJob
from deepen.model.compute import copies
from deepen.model.compute.copies import make_copies, shared_out
from deepen.model.config import ResolvedBase
from deepen.model.generate import Decoding, generate
from deepen.model.loss.model import LossModel
from deepen.parallel.config import Compute
from tests.evaluate.conftest import LIMIT_SECONDS

WORDS = "heart blood fever body cell rain cloud river stone light bread winter".split()
TEXTS = {
    "papers": [" ".join(WORDS[(n * k) % 12] for k in range(1, 4 + 3 * n)) for n in range(1, 30)],
    "web": [" ".join(WORDS[(n + k) % 12] for k in range(1, 4 + 2 * n)) for n in range(1, 30)],
}


@pytest.fixture
def config(tmp_path: Path) -> EvaluateConfig:
    rows = [{"question": f"{one} {n}", "choices": WORDS[:3], "answer": n % 3} for n, one in enumerate(WORDS * 4)]
    (tmp_path / "exam.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    probes = [
        {"use": "held_out", "context": 24},
        {"use": "multiple_choice", "path": str(tmp_path / "exam.jsonl")},
        {"use": "arithmetic", "count": 40},
        {"use": "samples", "temperature": 0.7, "max_tokens": 9},
    ]
    return EvaluateConfig.model_validate({"probes": probes, "blends": {"interpolate": 3}})


def test_any_number_of_copies_makes_the_same_files(
    tmp_path: Path, base: ResolvedBase, curated: Any, tokenized: Artifact, trained: Any, config: EvaluateConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("deepen.evaluate.documents.windows._TOKENS_PER_BATCH", {"cpu": 100})
    monkeypatch.setattr("deepen.model.generate._TOKENS_PER_BATCH", {"cpu": 300})
    monkeypatch.setattr(stage, "RESAMPLES", 100)
    seen: dict[int, dict[int, LossModel]] = {}
    threads: dict[int, set[threading.Thread]] = {}
    compute_nll = LossModel.token_nll
    inputs = {"curate": curated(TEXTS), "tokenize": tokenized, "train": trained({5: 1.0, 10: 1.5})}
    made: dict[int, dict[str, bytes]] = {}
    for number in (1, 2, 4):
        used, drove = seen.setdefault(number, {}), threads.setdefault(number, set())

        def noted(model: LossModel, *arguments: Any, used: Any = used, drove: Any = drove) -> torch.Tensor:
            used[id(model)] = model  # kept, so that no other one gets its number
            drove.add(threading.current_thread())
            return compute_nll(model, *arguments)

        monkeypatch.setattr(LossModel, "token_nll", noted)
        compute, out = Compute(device="cpu", threads=1, scoring_copies=number), tmp_path / str(number)
        job = StageJob(out / "baseline", "b", inputs)
        manifest = baseline(config, job, base=base, compute=compute)
        evaluate(
            config, StageJob(out / "evaluate", "e", {**inputs, "baseline": Artifact(job.out, manifest)}), base=base,
            compute=compute,
        )  # fmt: skip
        files = [path for path in sorted(out.rglob("*")) if path.is_file() and path.name != "manifest.json"]
        made[number] = {path.relative_to(out).as_posix(): path.read_bytes() for path in files}
        assert list(read_records(out / "evaluate" / "scores.jsonl"))
    assert made[1].keys() == made[2].keys() == made[4].keys() and len(made[1]) > 15
    assert made[1] == made[2] == made[4]
    assert len(seen[1]) < len(seen[2]) < len(seen[4]), "copies do take part"
    assert threads[1] == {threading.main_thread()} and min(len(threads[2]), len(threads[4])) > 1


def test_copies_have_weights_of_their_own_and_follow_the_model(model: LossModel) -> None:
    make_copies(model, 3)
    try:
        prompts = [[5 + n, *range(20, 20 + n)] for n in range(3)]
        for one in model.copies:
            assert generate(one, prompts, Decoding(5)) == generate(model, prompts, Decoding(5))
            for ours, theirs in zip(model.parameters(), one.parameters(), strict=True):
                assert torch.equal(ours, theirs) and ours.data_ptr() != theirs.data_ptr()
            assert one.model.get_input_embeddings().weight.dtype == torch.float32 and not one.training
        before = model.copies
        make_copies(model, 2)
        assert len(model.copies) == 1 and model.copies[0] not in before and model.copies[0].copies == ()
    finally:
        model.copies = ()


class Pool(ThreadPoolExecutor):
    """Threads whose tasks can wait until the pool was told to end."""

    ends = threading.Event()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """See ``ThreadPoolExecutor``."""
        super().shutdown(wait=False, cancel_futures=cancel_futures)
        self.ends.set()
        super().shutdown(wait=wait)


def test_errors_and_limits_reach_whoever_measures(model: LossModel, monkeypatch: pytest.MonkeyPatch) -> None:
    make_copies(model, 2)
    try:
        done: list[int] = []

        def work(_member: LossModel, task: int) -> int:
            if task == 3:
                raise ZeroDivisionError("the fourth")
            if task > 3:
                Pool.ends.wait(LIMIT_SECONDS)
            done.append(task)
            return task

        with monkeypatch.context() as patch:
            patch.setattr(copies, "ThreadPoolExecutor", Pool)
            with pytest.raises(ZeroDivisionError, match="the fourth"):
                list(shared_out(model, work, range(50)))
        assert {0, 1, 2} <= set(done) and len(done) <= 5, "what was not begun is left"
        assert list(shared_out(model, work, [7, 5, 9, 8])) == [7, 5, 9, 8]
        threads = threading.active_count()
        found = attempt("slow", 0.3, lambda: list(shared_out(model, lambda _m, _t: time.sleep(0.05), range(500))))
        assert isinstance(found, Failure) and "longer than its limit" in found.reason
        assert threading.active_count() == threads
    finally:
        model.copies = ()


def test_beside_a_training_no_gpu_is_taken_unasked() -> None:
    assert Compute(scoring_copies="auto").beside_a_training.scoring_copies == 1
    assert Compute(scoring_copies=3).beside_a_training.scoring_copies == 3
