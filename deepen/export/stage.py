"""The export stage: the chosen checkpoint as a Hugging Face folder that was proven to be the trained model.

Everything is written to a folder aside and checked there; only then do the files take their places, each by rename. A
kill therefore leaves at most some of the final files, and the next run makes the same ones again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from functools import partial
from itertools import islice
from pathlib import Path

from deepen.errors import DeepenError
from deepen.export.card import Export, lineage_record, model_card
from deepen.export.chosen import chosen_checkpoint, chosen_model
from deepen.export.config import ExportConfig
from deepen.export.taken_over import CARD, LINEAGE, MODEL, model_mark, said_of, taken_over
from deepen.formats.documents.documents import read_tables
from deepen.formats.files.atomic import FileEntry, entry_of, sync_directory, sync_file, write_bytes
from deepen.formats.files.json_text import read_model
from deepen.formats.manifest import Artifact, Manifest, StageJob, begin_stage, finish_stage
from deepen.formats.tokens.extension import read_extension
from deepen.formats.training.scores import Choice
from deepen.formats.unchanged import check_inputs
from deepen.model.config import ResolvedBase
from deepen.parallel.config import Compute
from deepen.progress import say

FORMAT = 1

_TEXTS_PER_SOURCE = 4
_ASIDE = "huggingface.tmp"


def export(
    config: ExportConfig, job: StageJob, *, base: ResolvedBase, compute: Compute, lineage: Mapping[str, Artifact]
) -> Manifest:
    """Write the chosen model as a folder with tokenizer, card and ``deepen.json``.

    Inputs: ``tokenize``, ``train``, ``select``. ``lineage``: all finished stages of the run by name in their order, for
    the card; its ``curate`` gives the held-out text on which logits are compared. Raises ``DeepenError``, without a
    manifest, when the reloaded folder is not the model. The files of ``job.previous`` are taken over if its model is
    this one.
    """
    tokenizer = ["tokenizer/", "extension.json", "new_rows.safetensors"]
    check_inputs(job, {"select": [""], "tokenize": tokenizer, "curate": ["held_out/"]})
    begin_stage(job, stage="export", format_number=FORMAT, config=config)
    choice_file = job.inputs["select"].path / "choice.json"
    choice = read_model(choice_file, Choice)
    mark = model_mark(config, job, choice, FORMAT)
    before = taken_over(job, choice, base.name, mark)
    if before is not None:
        say("export: the model is the one that was exported before; only its card is written anew")
        made, files = before
    else:
        made = _make_folder(config, job, choice, base=base, compute=compute, texts=_texts(lineage))
        files = _put_in_place(job.out / _ASIDE, job.out)
    files.append(write_bytes(job.out / CARD, model_card(made, lineage).encode(), "sha256"))
    record = json.dumps(lineage_record(made, lineage), indent=1, ensure_ascii=False)
    files.append(write_bytes(job.out / LINEAGE, (record + "\n").encode(), "sha256"))
    counts = {
        "step": choice.step,
        "parameters": made.num_parameters,
        "dtype": made.dtype,
        "largest_logit_difference": made.difference,
        "compared_tokens": made.compared_tokens,
        "compared_on": made.compared_on,
        MODEL: said_of(made, mark),
    }
    if made.adapters is not None:
        counts |= {"method": made.adapters.title, "largest_merge_difference": made.merge_difference}
    what = "the untouched base" if choice.step is None else choice.title
    size = f"{made.num_parameters:,} parameters"
    proof = "every tensor is the checkpoint's"
    if made.difference is not None:
        proof = f"reloaded, its logits differ by at most {made.difference:.3g}"
    say(f"export: {what}, {size}; {proof}")
    return finish_stage(job, stage="export", format_number=FORMAT, config=config, files=files, counts=counts)


def _make_folder(
    config: ExportConfig,
    job: StageJob,
    choice: Choice,
    *,
    base: ResolvedBase,
    compute: Compute,
    texts: list[str],
) -> Export:
    """Load the chosen weights, write the folder aside and prove it; ``texts`` are what logits are compared on."""
    import torch

    from deepen.export.huggingface import SpecialIds, copy_tokenizer, round_trip, save_folder, tokens_of
    from deepen.export.merging import ADAPTER_FOLDER, merge
    from deepen.parallel.process import set_up

    aside = job.out / _ASIDE
    if aside.exists():
        # Of a start that was killed, perhaps with another choice.
        shutil.rmtree(aside)
    aside.mkdir()
    tokenize = job.inputs["tokenize"]
    special = SpecialIds(tokenize.counts["begin_of_document_id"], tokenize.counts["end_of_document_id"])
    vocabulary_size, tokenizer = tokenize.counts["vocabulary_size"], tokenize.path / "tokenizer"
    extension = read_extension(tokenize.path)
    if config.proof == "tensors":
        copy_tokenizer(tokenizer, aside)
        return _stream_folder(config, job, choice, base=base, aside=aside)
    model = chosen_model(choice, job, base)
    # Where the base stays it goes out as it came, with its own tokenizer.
    if choice.step is None and extension is not None and base.path is not None:
        vocabulary_size, tokenizer, extension = extension.base_vocabulary_size, base.path, None
    model.to(set_up(compute).device)
    copy_tokenizer(tokenizer, aside)
    tokens, compared_on = tokens_of(aside, texts), "held-out documents"
    if not tokens:
        tokens, compared_on = [torch.arange(min(64, vocabulary_size))[None]], "arbitrary tokens"
    merged = merge(model, tokens, aside / ADAPTER_FOLDER if config.adapter else None, base_name=base.name)
    save = partial(
        save_folder, folder=aside, max_shard=config.max_shard, special=special, base=base.path, extension=extension
    )
    found = round_trip(model, tokens, aside, dtype=config.dtype, save=save)
    return Export(
        base=base.name,
        choice=choice,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        vocabulary_size=vocabulary_size,
        num_new_tokens=0 if extension is None else len(extension.tokens),
        dtype=found.dtype,
        difference=found.difference,
        compared_tokens=found.compared_tokens,
        compared_on=compared_on,
        adapters=None if merged is None else merged.adapters,
        merge_difference=None if merged is None else merged.difference,
    )


def _stream_folder(config: ExportConfig, job: StageJob, choice: Choice, *, base: ResolvedBase, aside: Path) -> Export:
    """Write the weights of the chosen checkpoint one by one, and compare them so; raises ``DeepenError`` where that is
    not possible."""
    from deepen.export.huggingface import SpecialIds
    from deepen.export.streamed import Saving, save_streamed
    from deepen.formats.training.adapters import read_adapters
    from deepen.model.weights.load import unique_weights
    from deepen.model.weights.streaming import placeholders

    tokenize = job.inputs["tokenize"]
    info = chosen_checkpoint(job.inputs["train"], choice.step) if choice.step is not None else None
    if info is None or choice.blend or read_adapters(info) is not None:
        what = "adapters are merged in memory" if info is not None else "the untouched base was chosen"
        what = "a blend is made in memory" if choice.blend else what
        raise DeepenError(f"`export.proof: tensors` is not possible: {what}", hint="use `export.proof: logits`")
    special = SpecialIds(tokenize.counts["begin_of_document_id"], tokenize.counts["end_of_document_id"])
    extension = read_extension(tokenize.path)
    model = placeholders(base, tokenize)
    saving = Saving(aside, config.max_shard, special, base.path, extension)
    save_streamed(model, info.weights, saving, dtype=config.dtype)
    return Export(
        base=base.name,
        choice=choice,
        num_parameters=sum(tensor.numel() for tensor in unique_weights(model).values()),
        vocabulary_size=tokenize.counts["vocabulary_size"],
        num_new_tokens=0 if extension is None else len(extension.tokens),
        dtype={"trained": "float32"}.get(config.dtype, config.dtype),
        difference=None,
        compared_tokens=0,
        compared_on="tensors",
    )


def _texts(lineage: Mapping[str, Artifact]) -> list[str]:
    """The first held-out documents of every source; none when nothing was held out."""
    texts: list[str] = []
    curate = lineage.get("curate")
    for name in curate.counts["sources"] if curate is not None else ():
        path = curate.path / "held_out" / f"{name}.parquet" if curate is not None else Path()
        if path.is_file():
            rows = (text for table in read_tables(path, ["text"]) for text in table["text"].to_pylist())
            texts += islice(rows, _TEXTS_PER_SOURCE)
    return texts


def _put_in_place(aside: Path, out: Path) -> list[FileEntry]:
    """Flush every file to disk and move it into ``out``; returns their entries, hashed by sha256."""
    entries = []
    for file in sorted(path for path in aside.rglob("*") if path.is_file()):
        target = out / file.relative_to(aside)
        target.parent.mkdir(exist_ok=True)
        # Before the rename: after a power failure a name must not stand for bytes that never came.
        sync_file(file)
        entries.append(entry_of(file.replace(target), out, "sha256"))
        sync_directory(target.parent)
    shutil.rmtree(aside)
    return entries
