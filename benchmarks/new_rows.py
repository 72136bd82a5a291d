"""Rows of new tokens on really trained tiny models: what each way to make them costs old text and gains on new text.

Needs DEEPEN_TEST_DATA. The vocabulary grows as `tokenize.vocabulary: {extend: N}` grows it. (One base has single
characters for a vocabulary and no merges, so deepen refuses to extend it; here the most frequent adjacent pair of ids
becomes a token, again and again.) Then, per base and way to make rows:

- old text: the rise of its loss when the tables grow. For exact `mean` it may not pass log(1 + k/n) at any position
  (k added rows, padding included; n old ones): a theorem, checked in fp64.
- new text: the loss at the first step. `subword_mean` must be below every one of three random draws, where the base
  knows the pieces.
- `new_rows_first`: after its steps the new text must have a lower loss, and every other number of the model must be
  bit-identical; then the same run to its end with and without it, printed.

`python benchmarks/new_rows.py`; each bar prints PASS or FAIL, and the exit code says whether all passed.
"""

from __future__ import annotations

import sys

sys.path.append(sys.path.pop(0))  # the standard library first: this folder has a `tokenize.py` too

import argparse
import io
import json
import math
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import zstandard
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerFast as FastTokenizer

from deepen.formats.tokens.extension import Extension, NewToken
from deepen.model.config import ResolvedBase
from deepen.model.loss.model import LossModel
from deepen.model.new_rows import Init, write_new_rows
from deepen.model.token_tables import new_row_ids
from deepen.model.weights.load import load_model, load_tokenizer, unique_weights
from deepen.parallel.config import Compute
from deepen.parallel.process import Process
from deepen.tokenize.vocabulary.base_model import BaseModel
from deepen.tokenize.vocabulary.extend import extended, extension_of
from deepen.tokenize.vocabulary.growth import grow as learn_tokens
from deepen.train.batches.read import IGNORED, Batch
from deepen.train.config import TrainConfig
from deepen.train.schedule.learning_rate import PeakRate
from deepen.train.schedule.new_rows import NewRowsFirst, RowHold
from deepen.train.schedule.optimizer import build_optimizer
from deepen.train.schedule.schedules import Cosine
from deepen.train.step import Trainee, train_step

LENGTH, ROWS, EVALUATED_ROWS = 128, 8, 48
CASES = (
    ("model_tinystories_656k", "medical_trials_fulltext", "english_novels", True),
    ("model_stories260k", "medical_trials_fulltext", "english_novels", True),
    ("model_zh_poem", "chinese_db_docs", "chinese_classical", True),
    ("model_stories260k", "hindi_classics", "english_novels", False),
)
"""Base, new text, old text, and whether the base was trained on the pieces of the new text at all. It was not on bytes
of a script that it never saw: the mean of such pieces need not help, so that case is printed without a bar."""
BREAK = -1
passed: list[bool] = []


def judge(what: str, good: bool) -> None:
    """Print whether a bar was met, and remember it."""
    passed.append(good)
    print(f"  {'PASS' if good else 'FAIL'}  {what}")


def texts(folder: Path) -> Iterator[str]:
    """The documents of a corpus of the test data."""
    path = next(folder.glob("corpus.jsonl*"))
    opened = zstandard.open(path, "rb") if path.suffix == ".zst" else path.open("rb")
    with io.TextIOWrapper(opened, encoding="utf-8") as lines:
        yield from (json.loads(line)["text"] for line in lines)


def beginnings(corpus: Path, most_characters: int) -> list[str]:
    """The beginnings of the first documents of a corpus."""
    found, characters = [], 0
    for text in texts(corpus):
        found.append(text[: min(20_000, most_characters - characters)])
        characters += len(found[-1])
        if characters >= most_characters:
            break
    return found


def ids_of(tokenizer: Tokenizer, documents: list[str]) -> np.ndarray:
    """Token ids of documents, apart by BREAK."""
    encoded = [tokenizer.encode(text, add_special_tokens=False).ids for text in documents]
    return np.array([number for ids in encoded for number in (*ids, BREAK)], dtype=np.int64)


def merged(ids: np.ndarray, left: int, right: int, made: int) -> np.ndarray:
    """``ids`` with each pair (left, right), two different ids, replaced by ``made``."""
    at = np.flatnonzero((ids[:-1] == left) & (ids[1:] == right))
    ids = ids.copy()
    ids[at] = made
    return np.delete(ids, at + 1)


@dataclass(frozen=True)
class Grown:
    """A vocabulary grown on ``ids``."""

    extension: Extension
    ids: np.ndarray
    """The new text in the grown vocabulary."""


def grow(tokenizer: FastTokenizer, documents: list[str], num_new: int) -> Grown:
    """The vocabulary that deepen grows, and the documents in it."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        base = BaseModel.read(Path(folder) / "tokenizer.json")
    growth = learn_tokens(base, base.count_words(documents), num_new)
    grown = extended(base, growth)
    return Grown(extension_of(base, grown, growth.tokens, {}), ids_of(grown.tokenizer, documents))


def grow_by_ids(ids: np.ndarray, vocabulary_size: int, num_new: int) -> Grown:
    """Continued BPE on token ids, for a vocabulary without merges."""
    pieces: dict[int, tuple[int, ...]] = {}
    for made in range(vocabulary_size, vocabulary_size + num_new):
        usable = (ids[:-1] != BREAK) & (ids[1:] != BREAK) & (ids[:-1] != ids[1:])
        pairs, counts = np.unique(ids[:-1][usable] << 32 | ids[1:][usable], return_counts=True)
        left, right = divmod(int(pairs[counts.argmax()]), 1 << 32)
        ids = merged(ids, left, right, made)
        pieces[made] = (*pieces.get(left, (left,)), *pieces.get(right, (right,)))
    tokens = tuple(NewToken(id=made, token=str(made), text=None, old_ids=old) for made, old in pieces.items())
    extension = Extension(
        base_vocabulary_size=vocabulary_size, vocabulary_size=vocabulary_size + num_new, tokens=tokens
    )
    return Grown(extension, ids)


def rows_of(ids: np.ndarray) -> tuple[Tensor, Tensor]:
    """Rows of LENGTH tokens and their labels; labels across documents are ignored."""
    num_rows = (len(ids) - 1) // LENGTH
    tokens = ids[: num_rows * LENGTH].reshape(num_rows, LENGTH)
    labels = ids[1 : num_rows * LENGTH + 1].reshape(num_rows, LENGTH)
    ignored = (labels == BREAK) | (tokens == BREAK)
    return torch.from_numpy(np.where(tokens == BREAK, 0, tokens)), torch.from_numpy(np.where(ignored, IGNORED, labels))


def token_losses(model: PreTrainedModel, ids: np.ndarray, rows: int = EVALUATED_ROWS) -> Tensor:
    """Nats of every scored position of the first rows."""
    tokens, labels = (values[:rows] for values in rows_of(ids))
    positions = torch.arange(LENGTH).expand(tokens.shape)
    return LossModel(model.eval()).token_nll(tokens, labels, positions)[labels != IGNORED]


@dataclass(frozen=True)
class Setting:
    """One base with its texts."""

    base: ResolvedBase
    folder: Path
    """Where files of new rows go."""
    grown: Grown
    ids_before: np.ndarray
    """The new text in the base's vocabulary."""
    old_ids: np.ndarray
    num_bytes: int
    """Of the new text."""
    known_pieces: bool

    def bits_per_byte(self, nats_per_token: float, ids: np.ndarray) -> float:
        """Of new text, written in ``ids``."""
        return nats_per_token / math.log(2) * int((ids != BREAK).sum()) / self.num_bytes

    def model(self, init: Init | None, seed: int = 1, *, zero: bool = False) -> PreTrainedModel:
        """The base, grown or (None) as it is, in fp32."""
        size = self.grown.extension.base_vocabulary_size
        if init is None:
            return load_model(self.base, vocabulary_size=size, seed=0)
        assert self.base.path is not None
        write_new_rows(self.base.path, self.folder, self.grown.extension, init=init, seed=seed)
        model = load_model(self.base, vocabulary_size=size, seed=0, new_rows=self.folder / "new_rows.safetensors")
        if zero:
            with torch.no_grad():
                model.get_input_embeddings().weight[size:] = 0
                model.get_output_embeddings().weight[size:] = 0
        return model


def compare_inits(setting: Setting) -> None:
    """Old and new text right after growing."""
    before = token_losses(setting.model(None).double(), setting.old_ids)
    extension = setting.grown.extension
    n, rows = extension.base_vocabulary_size, setting.model("mean").config.vocab_size
    bound = math.log1p((rows - n) / n)
    print(f"  {len(extension.tokens)} new tokens, {rows - n} rows added to {n}; log(1 + k/n) = {bound:.4f} nats")
    print(f"  {'rows':14}{'old text, rise':>16}{'largest':>10}{'new text':>12}{'bits/byte':>11}")
    unchanged = float(token_losses(setting.model(None), setting.ids_before).mean())
    bits = setting.bits_per_byte(unchanged, setting.ids_before)
    print(f"  {'not grown':14}{0.0:16.4f}{0.0:10.4f}{unchanged:12.3f}{bits:11.3f}")
    first: dict[str, float] = {}
    ways: list[tuple[str, Init, int, bool]] = [
        ("mean", "mean", 1, False), ("subword_mean", "subword_mean", 1, False), ("nearest", "nearest", 1, False),
        *((f"random {seed}", "random", seed, False) for seed in (1, 2, 3)), ("zero", "mean", 1, True),
    ]  # fmt: skip
    for name, init, seed, zero in ways:
        model = setting.model(init, seed, zero=zero).double()
        rise = token_losses(model, setting.old_ids) - before
        first[name] = float(token_losses(model, setting.grown.ids).mean())
        bits = setting.bits_per_byte(first[name], setting.grown.ids)
        print(f"  {name:14}{float(rise.mean()):16.4f}{float(rise.max()):10.4f}{first[name]:12.3f}{bits:11.3f}")
        if name == "mean":
            judge(f"`mean` stays within log(1 + k/n) at all {len(rise):,} positions", float(rise.max()) <= bound + 1e-9)
    lowest = min(first[f"random {seed}"] for seed in (1, 2, 3))
    if setting.known_pieces:
        judge("`subword_mean` begins below every random draw on new text", first["subword_mean"] < lowest)
    else:
        print(f"  no bar: the pieces were never trained; subword_mean {first['subword_mean']:.2f}, random {lowest:.2f}")


def train(setting: Setting, steps: int, first_steps: int) -> None:
    """One run over the new text; with new rows first, checks what moved."""
    model, config = setting.model("subword_mean"), TrainConfig(tokens=1, batch_tokens=1, learning_rate=PeakRate(1e-3))
    start = {name: value.detach().clone() for name, value in unique_weights(model).items()}
    optimizer, hold = build_optimizer(model, config), None
    if first_steps:
        hold = RowHold(model, new_row_ids(setting.folder / "new_rows.safetensors"), optimizer)
        optimizer = hold.optimizer
    plan = NewRowsFirst(first_steps, config.new_rows_learning_rate, hold)
    schedule = Cosine()
    shape = schedule.shape(total_steps=steps, tokens_per_step=LENGTH * ROWS)
    process = Process(torch.device("cpu"), threads=torch.get_num_threads())
    trainee = Trainee(LossModel(model), optimizer, config.clip, Compute(device="cpu"), "fp32", process)
    tokens, labels = (values[EVALUATED_ROWS:].numpy() for values in rows_of(setting.grown.ids))
    order = np.random.default_rng(0).permutation(len(tokens))
    shown = float(token_losses(model, setting.grown.ids).mean())
    model.train()
    for step in range(steps):
        if step == first_steps and hold is not None:
            check_first_time(setting, model, start, shown)
            model.train()
            trainee = Trainee(trainee.model, hold.release(), config.clip, trainee.compute, "fp32", process)
        rows = np.take(order, np.arange(step * ROWS, (step + 1) * ROWS), mode="wrap")
        positions = np.broadcast_to(np.arange(LENGTH), (ROWS, LENGTH)).copy()
        zeros = np.zeros(ROWS, dtype=np.int64)
        batch = Batch(tokens[rows], labels[rows], positions, positions, zeros, zeros)
        rate = 1e-3 * schedule.multiplier(step, shape) * plan.factor(step, shape)
        train_step(trainee, batch, rate)
    new, old = (float(token_losses(model, ids).mean()) for ids in (setting.grown.ids, setting.old_ids))
    print(f"  new rows first {first_steps:3d} of {steps} steps: new text {shown:.3f} -> {new:.3f}, old text {old:.3f}")


def check_first_time(setting: Setting, model: PreTrainedModel, start: dict[str, Tensor], shown: float) -> None:
    """What moved while only new rows could, and what it brought."""
    extension = setting.grown.extension
    new = slice(extension.base_vocabulary_size, extension.vocabulary_size)
    rows = len(model.get_input_embeddings().weight)
    others_equal = True
    for name, value in unique_weights(model).items():
        keep = torch.ones(len(value), dtype=torch.bool)
        keep[new] = len(value) != rows
        others_equal &= torch.equal(value[keep], start[name][keep])
    after, old = (float(token_losses(model, ids).mean()) for ids in (setting.grown.ids, setting.old_ids))
    print(f"  after the steps of new rows alone: new text {shown:.3f} -> {after:.3f}, old text {old:.3f}")
    judge("all but the new rows is bit-identical after their steps", others_equal)
    judge("new text has a lower loss after their steps", after < shown)


def setting_of(data: Path, case: tuple[str, str, str, bool], folder: Path, num_new: int, characters: int) -> Setting:
    """Read one case and grow its vocabulary."""
    name, new, old, known_pieces = case
    base = data / name
    tokenizer, documents = load_tokenizer(base), beginnings(data / new, characters)
    plain = tokenizer.backend_tokenizer
    ids, old_ids = ids_of(plain, documents), ids_of(plain, beginnings(data / old, characters // 2))
    has_merges = type(plain.model).__name__ == "BPE"
    num_rows = int(json.loads((base / "config.json").read_text())["vocab_size"])
    grown = grow(tokenizer, documents, num_new) if has_merges else grow_by_ids(ids, num_rows, num_new)
    before, after = (int((one != BREAK).sum()) for one in (ids, grown.ids))
    print(f"\n{name}: new text {new} ({before:,} -> {after:,} tokens), old text {old}")
    num_bytes = sum(len(text.encode()) for text in documents)
    return Setting(ResolvedBase(name, base, None, ""), folder, grown, ids, old_ids, num_bytes, known_pieces)


def main() -> None:
    """Run all cases."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--tokens", type=int, default=400, help="new tokens")
    options.add_argument("--steps", type=int, default=300, help="optimizer steps of each run")
    options.add_argument("--characters", type=int, default=500_000, help="of new text")
    given = options.parse_args()
    data = Path(os.environ["DEEPEN_TEST_DATA"])
    torch.set_num_threads(1)
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            setting = setting_of(data, case, Path(folder), given.tokens, given.characters)
            compare_inits(setting)
            for first_steps in (max(1, given.steps // 20), 0):
                train(setting, given.steps, first_steps)
    print(f"\n{sum(passed)} of {len(passed)} bars met")
    sys.exit(0 if all(passed) else 1)


if __name__ == "__main__":
    main()
