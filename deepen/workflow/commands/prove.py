"""`deepen prove`: before money is spent, prove on the recipe's own model, data and machine that training is right.

The data stages are made as for a run (and are then done); what is proven on them takes a few rows and is thrown away.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepen.errors import DeepenError
from deepen.formats.documents.documents import document_files, read_documents
from deepen.formats.manifest import Artifact, StageJob
from deepen.formats.tokens.extension import read_extension
from deepen.progress import say
from deepen.recipe.models import Machine, Recipe
from deepen.workflow.inputs.find import resolve_setup
from deepen.workflow.run import RunOptions, run_pipeline
from deepen.workflow.setup import Setup

if TYPE_CHECKING:
    from deepen.train.run import Run
    from deepen.train.starting.proofs import Proof

_DOCUMENTS = 8
_MOST_CHARACTERS = 100_000
_TOKENS = 256


def prove_recipe(recipe: Recipe, machine: Machine, run: Path, options: RunOptions) -> list[Proof]:
    """Bring the data stages of ``run`` up to date and prove what training will rely on; returns what was found."""
    done = run_pipeline(recipe, machine, run, options)
    setup = resolve_setup(recipe, machine, run, offline=options.offline)
    with tempfile.TemporaryDirectory(prefix="deepen-prove-") as folder:
        return list(proofs(setup, done, partial(_prepare, setup, done, Path(folder))))


def proofs(setup: Setup, done: dict[str, Artifact], prepare: Callable[[], Run]) -> Iterator[Proof]:
    """All proofs, one after the other; ``prepare`` gives a fresh run at its beginning, every time the same."""
    from deepen.train.starting.proofs import prove_accumulation, prove_isolation, prove_resume

    run = prepare()
    say("prove: the model and its first batches are there")
    yield _first_loss(setup, done, run)
    yield from prove_isolation(run)
    yield prove_accumulation(run)
    yield _export(setup, done["tokenize"], run)
    del run
    yield prove_resume(prepare)


def _prepare(setup: Setup, done: dict[str, Artifact], folder: Path) -> Run:
    from deepen.train.starting.build import prepare_run

    with tempfile.TemporaryDirectory(dir=folder) as out:
        inputs = {name: done[name] for name in ("curate", "tokenize", "mix")}
        job = StageJob(Path(out), "prove", inputs, seed=setup.recipe.seed)
        return prepare_run(setup.recipe.train, job, setup.base, setup.machine.compute)


def _first_loss(setup: Setup, done: Mapping[str, Artifact], run: Run) -> Proof:
    """Our loss on documents of the shards against the base as transformers alone gives it."""
    from deepen.train.starting.proofs import Proof, prove_first_loss

    if setup.base.path is None:
        return Proof("first loss is the base's", None, "a random network has no base to compare with")
    extension = read_extension(done["tokenize"].path)
    num_old = extension.base_vocabulary_size if extension else int(done["tokenize"].counts["vocabulary_size"])
    texts = list(_texts(done, run, setup.base.path))
    return prove_first_loss(run, partial(_reference_loss, _reference(setup.base.path, run)), texts, num_old)


def _texts(done: Mapping[str, Artifact], run: Run, base: Path) -> Iterator[tuple[list[int], list[int]]]:
    """The first documents of plain text of every source: their ids in the shard, and those of the base's tokenizer."""
    encode = _encoder_of(base)
    counts = done["tokenize"].counts
    frame = {counts["begin_of_document_id"], counts["end_of_document_id"]}
    for source in run.batches.sources:
        sequences = {
            source.document_ids[number]: number for number in range(min(_DOCUMENTS, len(source.shard.lengths)))
        }
        files = document_files(done["curate"].path / "documents", source.name)
        for document in islice(chain.from_iterable(map(read_documents, files)), _DOCUMENTS):
            if document.id not in sequences or document.spans or len(document.text) > _MOST_CHARACTERS:
                continue
            ids = [number for number in source.shard[sequences[document.id]].tolist() if number not in frame]
            if len(ids) > 1:
                yield ids, encode(document.text)


def _encoder_of(base: Path) -> Callable[[str], list[int]]:
    """The base's own tokenizer: its ``tokenizer.json`` where there is one, since AutoTokenizer may rebuild another."""
    from tokenizers import Tokenizer

    from deepen.model.weights.load import load_tokenizer

    file = base / "tokenizer.json"
    plain = Tokenizer.from_file(str(file)) if file.is_file() else load_tokenizer(base).backend_tokenizer
    plain.no_truncation()
    plain.no_padding()
    plain.encode_special_tokens = True
    return lambda text: list(plain.encode(text, add_special_tokens=False).ids)


def _reference(base: Path, run: Run) -> Any:
    """The base as anybody loads it, without any of our code."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32, local_files_only=True, use_safetensors=True, trust_remote_code=False
    )
    return model.to(run.trainee.device).eval()


def _reference_loss(model: Any, ids: Sequence[int]) -> float:
    """The base's own loss, labels shifted and averaged by transformers."""
    import torch

    tokens = torch.tensor([list(ids)], device=next(model.parameters()).device)
    with torch.no_grad():
        return float(model(input_ids=tokens, labels=tokens, use_cache=False).loss)


def _export(setup: Setup, tokenize: Artifact, run: Run) -> Proof:
    """Write the model as it is, load it as a user would, compare logits."""
    import torch

    from deepen.export.huggingface import SpecialIds, round_trip, save_folder
    from deepen.export.merging import merge
    from deepen.train.starting.proofs import Proof

    rows = [torch.from_numpy(run.batches[0].tokens_BT[:1, :_TOKENS])]
    special = SpecialIds(tokenize.counts["begin_of_document_id"], tokenize.counts["end_of_document_id"])
    with tempfile.TemporaryDirectory(prefix="deepen-prove-") as folder:
        save = partial(
            save_folder, folder=Path(folder), max_shard=setup.recipe.export.max_shard, special=special,
            base=setup.base.path, extension=read_extension(tokenize.path),
        )  # fmt: skip
        try:
            merge(run.trainee.model.model, rows, None, base_name=setup.base.name)
            found = round_trip(run.trainee.model.model, rows, Path(folder), dtype=setup.recipe.export.dtype, save=save)
        except DeepenError as error:
            return Proof("export and reload", False, error.message)
    return Proof("export and reload", True, f"{found.dtype}, largest difference of logits {found.difference:.1e}")
