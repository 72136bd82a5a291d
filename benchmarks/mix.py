"""Packing, ordering and reading batches: CPU time, memory and how full rows are, each against its bar.

Every measurement runs in a process of its own, so that memory is its own; times are CPU seconds of one core, after the
kernels were compiled. How full rows are is measured on the corpora of DEEPEN_TEST_DATA with 5,000 documents or more,
encoded by a real tokenizer, and on made lengths.
"""

from __future__ import annotations

import sys

sys.path.append(sys.path.pop(0))  # the standard library first: this folder has a `tokenize.py` too

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zstandard

from deepen.formats.documents.document_ids import pack_ids
from deepen.formats.tokens.megatron import IndexedDatasetWriter, bin_path, idx_path
from deepen.formats.tokens.order import Order, Segment, Segments, write_order, write_segments
from deepen.mix.counts import tally
from deepen.mix.order.build import OrderBuilder, Phase, Supply
from deepen.mix.packing.pack import best_fit
from deepen.mix.packing.sources import PackPart, pack_source

MOST_PACKING_SECONDS, MOST_PACKING_GB = 10.0, 1.0
MOST_ORDER_SECONDS, MOST_ORDER_GROWTH_MB = 60.0, 50.0
LEAST_READING, MOST_BATCH_SHARE = 200.0, 0.01
MOST_CHECK_MB = 5.0
LEAST_DOCUMENTS = 5_000
ROW_LENGTHS = (512, 1024, 2048, 4096, 8192)

Array = npt.NDArray[Any]
Result = dict[str, Any]


def resident_mb(key: str = "VmRSS") -> float:
    """Memory of this process in MB: now, or at its peak (``VmHWM``)."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith(key)).split()[1]) / 1000


def document_lengths(number: int) -> Array:
    """Log-normal document lengths, in tokens, as web text has them: mean about 665."""
    lengths: Array = np.random.default_rng(1).lognormal(6, 1, number).astype(np.int32) + 1
    return lengths


def make_shard(prefix: Path, lengths: Array) -> None:
    """A pair with documents of these lengths whose ids are all 0, in a file that takes no room on disk."""
    with IndexedDatasetWriter(prefix, np.int32) as writer:
        writer.add_documents(np.zeros(0, np.int32), np.zeros(0, np.int64))
    head = idx_path(prefix).read_bytes()[:18] + np.array([len(lengths), len(lengths) + 1], "<u8").tobytes()
    offsets = np.concatenate([[0], np.cumsum(lengths[:-1], dtype=np.int64)]) * 4
    with idx_path(prefix).open("wb") as file:
        file.write(head)
        for values, kind in ((lengths, "<i4"), (offsets, "<i8"), (np.arange(len(lengths) + 1), "<i8")):
            file.write(values.astype(kind).tobytes())
    os.truncate(bin_path(prefix), 4 * int(lengths.sum(dtype=np.int64)))


def packing() -> Result:
    """A million documents, from the shard to the packs on disk."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        best_fit(np.array([4, 3, 3] * 50, np.int32), 10)  # compiles both fillings
        make_shard(root / "web", document_lengths(1_000_000))
        part = PackPart(root / "web", root, "web", "best_fit", (2048,), (1.0,), 17, root / "none")
        started = time.process_time()
        found = pack_source(part)
        seconds = time.process_time() - started
    rows, tokens = found["supplies"][0]["rows"], found["supplies"][0]["tokens"]
    return {"seconds": seconds, "gb": resident_mb("VmHWM") / 1000, "rows": rows, "tokens": tokens}


def supplies_of(num_rows: int) -> list[Supply]:
    """Five sources of two roles with ``num_rows`` rows in all."""
    random = np.random.default_rng(2)
    parts = {"papers": ("domain", 0.3), "notes": ("domain", 0.1), "books": ("domain", 0.1), "web": ("replay", 0.4)}
    parts["code"] = ("replay", 0.1)
    return [
        Supply(name, name, role, index, random.integers(1500, 2049, int(num_rows * part), dtype=np.int32), 2048)
        for index, (name, (role, part)) in enumerate(parts.items())
    ]


def shares_of(supplies: list[Supply], domain: float) -> dict[tuple[str, ...], float]:
    """Roles by share, sources by their rows."""
    shares: dict[tuple[str, ...], float] = {("domain",): domain, ("replay",): 1 - domain}
    for supply in supplies:
        shares |= {supply.path[:2]: supply.num_rows, supply.path: 1.0}
    return shares


def ordering(num_rows: int) -> Result:
    """An order with a ramp over packed rows that are passed twice, written and counted."""
    supplies = supplies_of(num_rows // 2)
    begin, end = shares_of(supplies, 0.4), shares_of(supplies, 0.6)
    list(OrderBuilder(supplies_of(100), max_epochs=9, seed=1).blocks([Phase(0, 2, 16, begin, end)]))
    builder = OrderBuilder(supplies, max_epochs=9, seed=1)
    phase = Phase(0, num_rows // 64, 64, begin, end)
    with tempfile.TemporaryDirectory() as name:
        root, before = Path(name), resident_mb()
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here on
        started = time.process_time()
        write_order(root / "order/000.u64", builder.blocks([phase]), root)
        seconds, after = time.process_time() - started, resident_mb("VmHWM")
        segment = Segment(
            file="order/000.u64", first_batch=0, num_batches=phase.num_batches, sequence_length=2048, rows_per_batch=64
        )
        write_segments(root, Segments(sources=tuple(s.name for s in supplies), segments=(segment,)))
        started = time.process_time()
        found = tally(Order.open(root), supplies, [phase.num_batches])
        counting = time.process_time() - started
        assert int(found.rows.sum()) == builder.num_rows == phase.num_batches * 64
        started = time.process_time()
        hits = Order.open(root).find([supplies[0].first_id, supplies[3].first_id + 5])
        return {
            "seconds": seconds, "growth_mb": after - before, "counting": counting,
            "tracing": time.process_time() - started, "hits": len(hits),
        }  # fmt: skip


def write_run(root: Path, sequence_length: int, num_documents: int) -> None:
    """A tokenize and a mix directory of random documents, with batches of 4,096 tokens."""
    lengths, random = document_lengths(num_documents), np.random.default_rng(3)
    for folder in ("shards", "documents"):
        (root / "tokenize" / folder).mkdir(parents=True, exist_ok=True)
    with IndexedDatasetWriter(root / "tokenize/shards/web", np.int32, blocks=True) as writer:
        writer.add_documents(random.integers(1, 2000, int(lengths.sum()), dtype=np.int32), lengths)
    np.save(root / "tokenize/documents/web.npy", pack_ids([f"{number:032x}" for number in range(num_documents)]))
    part = PackPart(
        root / "tokenize/shards/web", root / "mix", "web", "best_fit", (sequence_length,), (1.0,), 17, root / "none"
    )
    rows = pack_source(part)["supplies"][0]["rows"]
    rows_per_batch = 4096 // sequence_length
    write_order(root / "mix/order/000.u64", [np.arange(rows, dtype=np.uint64)], root)
    segment = Segment(
        file="order/000.u64", first_batch=0, num_batches=rows // rows_per_batch, sequence_length=sequence_length,
        rows_per_batch=rows_per_batch,
    )  # fmt: skip
    write_segments(root / "mix", Segments(sources=("web",), segments=(segment,)))


def reading() -> Result:
    """All batches of a corpus in the order in which they lie in the shard, and documents one after another."""
    from deepen.formats.tokens.megatron import IndexedDataset
    from deepen.train.batches.read import Batches

    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write_run(root, 2048, 60_000)
        batches = Batches.open(root / "tokenize", root / "mix")
        tokens = sum(int((batches[number].documents_BT >= 0).sum()) for number in range(50))
        started, tokens = time.process_time(), 0
        for number in range(len(batches)):
            tokens += batches[number].tokens_BT.size
        batch_seconds = time.process_time() - started
        dataset, total = IndexedDataset.open(root / "tokenize/shards/web"), 0
        started = time.process_time()
        for sequence in range(len(dataset)):
            total += int(dataset[sequence].sum(dtype=np.int64))
        document_seconds = time.process_time() - started
        assert total > 0
        megabytes = dataset.num_tokens * 4 / 1e6
        return {"batches": 4 * tokens / 1e6 / batch_seconds, "documents": megabytes / document_seconds}


def checked() -> Result:
    """What checking blocks costs: rows of 2,048 ids read once, in order and at random, with and without a table.

    Every reading begins with a freshly opened shard, of which no block was checked; its file is in the page cache, so
    that nothing but the check is measured. ``cost_ms``: what one pass costs more for a shard of 400 MB.
    """
    from deepen.formats.tokens.megatron import IndexedDataset

    num_rows = 50_000
    found: Result = {}
    with tempfile.TemporaryDirectory() as name:
        prefix, random = Path(name) / "web", np.random.default_rng(3)
        with IndexedDatasetWriter(prefix, np.int32, blocks=True) as writer:
            for _ in range(num_rows // 1000):
                writer.add_documents(random.integers(1, 2000, 2_048_000, dtype=np.int32), np.full(1000, 2048))
        megabytes = num_rows * 2048 * 4 / 1e6

        def rate(rows: Array, *, checks: bool) -> float:
            best = 0.0
            for _ in range(5):
                dataset = IndexedDataset.open(prefix)
                dataset = dataset if checks else replace(dataset, blocks=None)
                started = time.process_time()
                for row in rows.tolist():
                    dataset.read(row, 0, 2048).sum(dtype=np.int64)
                best = max(best, len(rows) / num_rows * megabytes / (time.process_time() - started))
            return best

        memory = resident_mb("RssAnon")
        orders = {"in order": np.arange(num_rows), "at random": random.permutation(num_rows)}
        # The first rows of a run at random places pay for whole blocks.
        orders["first 1,000 at random"] = orders["at random"][:1000]
        for where, rows in orders.items():
            found[where] = {"raw": rate(rows, checks=False), "checked": rate(rows, checks=True)}
        found["growth_mb"] = resident_mb("RssAnon") - memory
    return found


def random_batches() -> Result:
    """What fetching a random batch of 4,096 tokens costs beside one step of a tiny model on it."""
    import torch

    from deepen.formats.manifest import Artifact, CodeVersion, Manifest, StageJob
    from deepen.model.config import RandomInit, ResolvedBase
    from deepen.parallel.config import Compute
    from deepen.train.config import TrainConfig
    from deepen.train.starting.build import prepare_run
    from deepen.train.step import train_step

    def artifact(path: Path, counts: Result) -> Artifact:
        manifest = Manifest(
            stage=path.name, format=1, fingerprint=path.name, config={}, inputs={}, counts=counts,
            code=CodeVersion(version="0"), started="", finished="",
        )  # fmt: skip
        return Artifact(path, manifest)

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write_run(root, 512, 60_000)
        counts = {"sources": {"web": {"tokens": 1, "bytes": 4}}, "vocabulary_size": 2000}
        inputs = {"tokenize": artifact(root / "tokenize", counts), "mix": artifact(root / "mix", counts)}
        base = ResolvedBase("tiny", None, RandomInit(init="random", hidden_size=64, layers=2, heads=2), "base")
        config = TrainConfig.model_validate({"tokens": 40_960, "batch_tokens": 4096, "learning_rate": 1e-3})
        run = prepare_run(config, StageJob(root / "train", "run", inputs), base, Compute(device="cpu", threads=1))
        order, steps, fetches = np.random.default_rng(4).permutation(len(run.batches))[:60].tolist(), [], []
        for number in order:
            started = time.process_time()
            batch = run.batches[number]
            fetched = time.process_time()
            train_step(run.trainee, batch, 1e-3)
            steps.append(time.process_time() - fetched)
            fetches.append(fetched - started)
        parameters = sum(parameter.numel() for parameter in run.trainee.model.parameters())
    return {"batch": float(np.median(fetches)), "step": float(np.median(steps)), "parameters": parameters}


def corpora() -> Iterator[tuple[str, Array]]:
    """Token lengths, end token included, of real corpora with enough documents, and of made ones."""
    from transformers import AutoTokenizer

    root = Path(os.environ.get("DEEPEN_TEST_DATA", "/nowhere"))
    folder = root / "tokenizer_qwen2"
    tokenizer: Any = AutoTokenizer.from_pretrained(folder).backend_tokenizer if folder.is_dir() else None
    for path in sorted(root.glob("*/corpus.jsonl*")) if folder.is_dir() else ():
        data = path.read_bytes()
        if path.suffix == ".zst":
            data = zstandard.ZstdDecompressor().stream_reader(data).read()
        lines = data.decode().split("\n")
        texts = [json.loads(line)["text"] for line in lines if line]
        if len(texts) >= LEAST_DOCUMENTS:
            encoded = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
            yield path.parent.name, np.array([len(found.ids) + 1 for found in encoded], dtype=np.int32)
    yield "log-normal, 5,000 documents", document_lengths(LEAST_DOCUMENTS)
    yield "log-normal, 100,000 documents", document_lengths(100_000)


def filling() -> Result:
    """Rows that best-fit needs, and those that would do if documents were sand."""
    found = {}
    for name, lengths in corpora():
        tokens = int(lengths.sum(dtype=np.int64))
        for length in ROW_LENGTHS:
            needed, least = len(best_fit(lengths, length)[0]) - 1, -(-tokens // length)
            found[f"{name}, T = {length}"] = {"rows": needed, "least": least, "documents": len(lengths)}
    return found


MEASURES: dict[str, Callable[[], Result]] = {
    "packing": packing,
    "ordering-10M": lambda: ordering(10_000_000),
    "ordering-100M": lambda: ordering(100_000_000),
    "reading": reading,
    "checked": checked,
    "random-batches": random_batches,
    "filling": filling,
}


def measured(name: str) -> Result:
    """One measurement in a process of its own."""
    done = subprocess.run([sys.executable, __file__, "--only", name], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr}")
    result: Result = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def verdict(passed: bool, what: str) -> bool:
    """Print one bar."""
    print(f"{'PASS' if passed else 'FAIL'}  {what}", flush=True)
    return passed


def main() -> int:
    """Measure everything and print one PASS or FAIL per bar; the exit code is 1 when a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--only", choices=tuple(MEASURES), help="only print this measurement, as JSON")
    only = parser.parse_args().only
    if only:
        print(json.dumps(MEASURES[only]()))
        return 0
    passed = []
    pack = measured("packing")
    seconds, memory = pack["seconds"], pack["gb"]
    passed.append(verdict(seconds < MOST_PACKING_SECONDS, f"1M documents packed in {seconds:.2f} s (< 10)"))
    passed.append(verdict(memory < MOST_PACKING_GB, f"... with a peak of {memory:.2f} GB (< 1)"))
    small, large = measured("ordering-10M"), measured("ordering-100M")
    passed.append(
        verdict(large["seconds"] < MOST_ORDER_SECONDS, f"order of 100M rows in {large['seconds']:.1f} s (< 60)")
    )
    growth = large["growth_mb"] - small["growth_mb"]
    passed.append(
        verdict(
            growth < MOST_ORDER_GROWTH_MB,
            f"... in flat memory: grew by {small['growth_mb']:.0f} MB at 10M rows, {large['growth_mb']:.0f} at 100M",
        )
    )
    print(f"      counting it afterwards: {large['counting']:.1f} s; finding two rows in it: {large['tracing']:.1f} s")
    read = measured("reading")
    passed.append(
        verdict(read["batches"] >= LEAST_READING, f"batches read in sequence at {read['batches']:.0f} MB/s (>= 200)")
    )
    print(f"      documents alone: {read['documents']:.0f} MB/s")
    check = measured("checked")
    growth = check.pop("growth_mb")
    for where, rates in check.items():
        passed.append(
            verdict(
                rates["checked"] >= LEAST_READING,
                f"rows checked and read {where} at {rates['checked']:.0f} MB/s (>= 200), "
                f"{rates['checked'] / rates['raw']:.2f} of raw reading ({rates['raw']:.0f} MB/s)",
            )
        )
    passed.append(verdict(growth < MOST_CHECK_MB, f"... in flat memory: grew by {growth:.1f} MB (< 5)"))
    step = measured("random-batches")
    share = step["batch"] / step["step"]
    passed.append(
        verdict(
            share < MOST_BATCH_SHARE,
            f"a random batch of 4,096 tokens takes {1e3 * step['batch']:.2f} ms, {share:.2%} of a step (< 1 %) "
            f"of a model of {step['parameters']:,} parameters ({1e3 * step['step']:.0f} ms)",
        )
    )
    for name, found in measured("filling").items():
        most = int(found["least"] * 1.001 + 1)
        passed.append(verdict(found["rows"] <= most, f"{name}: {found['rows']} rows, at least {found['least']}"))
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
