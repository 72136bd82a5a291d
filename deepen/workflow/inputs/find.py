"""What a run starts from: the base model and the source files, found, fetched if allowed, and identified by content.

Local files are identified by their bytes (a cache by size and time avoids reading them twice); hub repositories by the
commit they resolved to. First everything is found, then all of it is identified in one pass.
"""

from __future__ import annotations

from pathlib import Path

from deepen.curate.contamination.decontaminate import PROBES, Decontaminate, probe_files
from deepen.errors import RunError, SourceError
from deepen.formats.files.hashes import HashCache
from deepen.formats.input_files import InputFiles, identify_files, named_files, tokenizers_as_inputs
from deepen.formats.manifest import InputEntry, fingerprint, open_artifact
from deepen.mix.fixed.files import fixed_files
from deepen.model.config import TOKENIZER_FILES, BaseRun, RandomInit, ResolvedBase
from deepen.progress import say
from deepen.recipe.models import Machine, Recipe
from deepen.tokenize.config import TEMPLATES, ExtendVocabulary
from deepen.workflow.inputs.pins import Pins
from deepen.workflow.inputs.sources import resolve_sources, resolve_tokenizers
from deepen.workflow.setup import Setup

_BASE_FILES = ("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json", *TOKENIZER_FILES)


def resolve_setup(recipe: Recipe, machine: Machine, run: Path, *, offline: bool) -> Setup:
    """Find base and sources (fetching them unless ``offline``) and identify them; raises for what is missing."""
    from deepen.ingest.stage import source_fingerprint

    recipe = with_probe_items(recipe)
    pins = Pins(run / "pins.json", offline=offline)
    base = resolve_base(recipe.base, pins, run)
    tokenizers = resolve_tokenizers(recipe.mix, pins)
    sources = resolve_sources(recipe.ingest, pins)
    found = probe_files_of(recipe) | files_of(recipe)
    entries = {"base": InputEntry(path=str(base.path or "random weights"), fingerprint=base.fingerprint)}
    for source, local in zip(recipe.ingest.sources, sources.sources, strict=True):
        mark = source_fingerprint(local, cache=hash_cache(run))
        entries[f"source:{source.name}"] = InputEntry(path=source.path, fingerprint=mark)
    if (frozen := recipe.curate.held_out.from_run) is not None:
        other = Path(frozen)
        artifact = open_artifact(other / "curate")
        if artifact is None:
            message = f"`curate.held_out.from: {other}`: that run has no finished curate stage"
            raise RunError(message, hint=f"`deepen curate {other}`")
        entries["held_out"] = InputEntry(path=str(artifact.path), fingerprint=artifact.fingerprint)
    found |= tokenizers_as_inputs(tokenizers, TOKENIZER_FILES)
    return Setup(recipe, machine, base, sources, entries | identify_files(found, hash_cache(run)))


def hash_cache(run: Path) -> Path:
    """Where hashes of unchanged input files are remembered, shared by the runs under one root."""
    return run.parent / ".hashes.json"


def with_probe_items(recipe: Recipe) -> Recipe:
    """The recipe with the word ``probes`` in ``decontaminate.against`` replaced by the item files of its probes.

    Those of probes that only come after training are not meant: adding one must not change what is trained. Raises
    ``SourceError`` when the word stands there and no probe has items in a file.
    """
    named = [path for probe in recipe.evaluate.in_loop.all_probes for path in probe.item_files()]
    steps = []
    for step in recipe.curate.steps:
        if isinstance(step, Decontaminate) and PROBES in step.against:
            against = tuple(dict.fromkeys([*(path for path in step.against if path != PROBES), *named]))
            if not against:
                raise SourceError(
                    "`decontaminate.against: [probes]`: no probe that is measured during training has its items in a "
                    "local file",
                    hint="name files of test items (of probes with `in_loop: false`, too), or take the step out",
                )
            step = step.model_copy(update={"against": against})
        steps.append(step)
    curate = recipe.curate.model_copy(update={"steps": tuple(steps)})
    return recipe.model_copy(update={"curate": curate})


def probe_files_of(recipe: Recipe) -> dict[str, InputFiles]:
    """What each probe of the evaluation reads."""
    found: dict[str, InputFiles] = {}
    for probe in recipe.evaluate.all_probes:
        if paths := [Path(path).expanduser() for path in probe.files()]:
            files = {str(number): path for number, path in enumerate(paths)}
            found[f"probe_files:{probe.label}"] = InputFiles(str(paths[0]), files, "probe_files")
    return found


def files_of(recipe: Recipe) -> dict[str, InputFiles]:
    """Files that settings of data stages name: test items and documents that curation keeps out, a template, words,
    prepared rows."""
    found: dict[str, InputFiles] = {}
    for rows in recipe.mix.fixed_rows:
        files = {file.location: file.path for file in fixed_files(rows.path)}
        found[f"fixed_rows:{rows.name}"] = InputFiles(rows.path, files, "fixed_rows")
    steps = [step for step in recipe.curate.steps if isinstance(step, Decontaminate)]
    lone = {f"probe:{path}": str(path) for step in steps for path in probe_files(step.against)}
    lone |= {f"quarantine:{file}": file for file in recipe.curate.quarantine}
    if recipe.tokenize.template not in TEMPLATES:
        lone["tokenize:template"] = recipe.tokenize.template
    vocabulary = recipe.tokenize.vocabulary
    if isinstance(vocabulary, ExtendVocabulary) and vocabulary.words is not None:
        lone["tokenize:words"] = vocabulary.words
    return found | {name: InputFiles(path, {path: Path(path).expanduser()}, "file") for name, path in lone.items()}


def resolve_base(base: str | BaseRun | RandomInit, pins: Pins, run: Path) -> ResolvedBase:
    """The base model as a local folder (or as an architecture for random weights) with its identity."""
    if isinstance(base, str):
        return _base_in_folder(base, pins, run)
    if isinstance(base, BaseRun):
        other = Path(base.run)
        artifact = open_artifact(other / "export")
        if artifact is None:
            message = f"`base: {{run: {other}}}`: that run has no finished export"
            raise RunError(message, hint=f"finish it: `deepen run {other}`")
        return ResolvedBase(name=other.name, path=artifact.path, init=None, fingerprint=artifact.fingerprint)
    mark = fingerprint("init", 1, base, {})
    return ResolvedBase(name=f"random {base.architecture}", path=None, init=base, fingerprint=mark)


def _base_in_folder(base: str, pins: Pins, run: Path) -> ResolvedBase:
    folder = Path(base).expanduser()
    if not folder.is_dir():
        folder, commit = pins.snapshot(base, kind="model", patterns=_BASE_FILES)
        return ResolvedBase(name=base, path=folder, init=None, fingerprint=f"hub:{base}@{commit}")
    if not (folder / "config.json").is_file():
        raise SourceError(f"base `{folder}` has no config.json", hint="give a Hugging Face model folder or a hub id")
    cache = HashCache(hash_cache(run))
    hashes = {name: cache.hash(path) for name, path in named_files(folder, _BASE_FILES).items()}
    cache.save()
    return ResolvedBase(name=folder.name, path=folder, init=None, fingerprint=fingerprint("base", 1, hashes, {}))


def fetch(recipe: Recipe, run: Path) -> list[tuple[str, str, str]]:
    """Download and hash everything the recipe needs; returns rows of (what, where, identity)."""
    from deepen.ingest.stage import source_fingerprint

    recipe, pins = with_probe_items(recipe), Pins(run / "pins.json", offline=False)
    base = resolve_base(recipe.base, pins, run)
    rows = [("base", str(base.path or "random weights"), base.fingerprint)]
    tokenizers = resolve_tokenizers(recipe.mix, pins)
    for source in resolve_sources(recipe.ingest, pins).sources:
        rows.append((f"source {source.name}", source.path, source_fingerprint(source, cache=hash_cache(run))))
        say(f"{source.name}: ready")
    found = probe_files_of(recipe) | files_of(recipe) | tokenizers_as_inputs(tokenizers, TOKENIZER_FILES)
    others = identify_files(found, hash_cache(run))
    return rows + [(name, entry.path, entry.fingerprint) for name, entry in others.items()]
