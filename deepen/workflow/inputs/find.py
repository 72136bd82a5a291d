"""What a run starts from: the base model and the source files, found, fetched if allowed, and identified by content.

Local files are identified by their bytes (a cache by size and time avoids reading them twice); hub repositories by the
commit they resolved to, which is pinned in ``pins.json`` of the run so that a rerun uses the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from deepen.curate.contamination.decontaminate import PROBES, Decontaminate, probe_files
from deepen.errors import DamageError, DeepenError, OfflineError, RunError, SourceError
from deepen.formats.files.atomic import hash_file, write_json
from deepen.formats.files.json_text import read_object
from deepen.formats.manifest import InputEntry, fingerprint, open_artifact
from deepen.ingest.config import HUB, Extraction, IngestConfig, Source
from deepen.ingest.files import MEGATRON, list_files
from deepen.mix.fixed.config import BASE
from deepen.mix.fixed.files import fixed_files
from deepen.model.config import TOKENIZER_FILES, BaseRun, RandomInit, ResolvedBase
from deepen.progress import say
from deepen.recipe.models import Machine, Recipe
from deepen.tokenize.config import TEMPLATES, ExtendVocabulary
from deepen.workflow.inputs.first_files import Pin, first_files
from deepen.workflow.inputs.hub import CARD, as_hub_patterns, list_dataset, pattern_in_card, read_card
from deepen.workflow.inputs.remote import Listing, Remote, list_remote, remote_files
from deepen.workflow.setup import Setup

_FIRST = "first files:"
"""Beginning of a pin's key: which files of a limited source were needed."""
_BASE_FILES = ("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json")


@contextmanager
def without_network(offline: bool) -> Iterator[None]:
    """Tell the hub libraries to connect to nothing while the block runs, if ``offline``.

    They read the variable when they are first imported, so this must come before.
    """
    before = os.environ.get("HF_HUB_OFFLINE")
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        yield
    finally:
        if offline:
            os.environ.pop("HF_HUB_OFFLINE")
            os.environ.update({"HF_HUB_OFFLINE": before} if before is not None else {})


def resolve_setup(recipe: Recipe, machine: Machine, run: Path, *, offline: bool) -> Setup:
    """Find base and sources (fetching them unless ``offline``) and identify them; raises for what is missing."""
    recipe = with_probe_items(recipe)
    pins = Pins(run / "pins.json", offline=offline)
    base = resolve_base(recipe.base, pins, run)
    sources = resolve_sources(recipe.ingest, pins)
    raw_inputs = {"base": InputEntry(path=str(base.path or "random weights"), fingerprint=base.fingerprint)}
    for source, found in zip(recipe.ingest.sources, sources.sources, strict=True):
        entry = InputEntry(path=source.path, fingerprint=identify_source(found, run))
        raw_inputs[f"source:{source.name}"] = entry
    frozen = recipe.curate.held_out.from_run
    if frozen is not None:
        raw_inputs["held_out"] = _held_out_of_run(Path(frozen))
    raw_inputs |= (
        _probes(recipe, run)
        | probe_files_of(recipe, run)
        | _tokenize_files(recipe, run)
        | _fixed_rows(recipe, pins, run)
    )
    return Setup(recipe, machine, base, sources, raw_inputs)


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


def _probes(recipe: Recipe, run: Path) -> dict[str, InputEntry]:
    """The files of test items, and of documents in quarantine, that curation keeps out of training, by content."""
    steps = [step for step in recipe.curate.steps if isinstance(step, Decontaminate)]
    cache = HashCache(hash_cache(run))
    files = [path for step in steps for path in probe_files(step.against)]
    entries = {f"probe:{path}": InputEntry(path=str(path), fingerprint=cache.hash(path)) for path in files}
    for file in recipe.curate.quarantine:
        entries[f"quarantine:{file}"] = InputEntry(path=file, fingerprint=cache.hash(Path(file).expanduser()))
    if entries:
        cache.save()
    return entries


def probe_files_of(recipe: Recipe, run: Path) -> dict[str, InputEntry]:
    """What each probe of the evaluation reads, by the contents of its files."""
    cache, entries = HashCache(hash_cache(run)), dict[str, InputEntry]()
    for probe in recipe.evaluate.all_probes:
        paths = [Path(path).expanduser() for path in probe.files()]
        if paths:
            mark = fingerprint("probe_files", 1, [cache.hash(path) for path in paths], {})
            entries[f"probe_files:{probe.label}"] = InputEntry(path=str(paths[0]), fingerprint=mark)
    if entries:
        cache.save()
    return entries


def _tokenize_files(recipe: Recipe, run: Path) -> dict[str, InputEntry]:
    """Files that the settings of ``tokenize`` name, by content."""
    named = {} if recipe.tokenize.template in TEMPLATES else {"template": recipe.tokenize.template}
    vocabulary = recipe.tokenize.vocabulary
    if isinstance(vocabulary, ExtendVocabulary) and vocabulary.words is not None:
        named["words"] = vocabulary.words
    cache = HashCache(hash_cache(run))
    return {
        f"tokenize:{name}": InputEntry(path=path, fingerprint=cache.hash(Path(path).expanduser()))
        for name, path in named.items()
    }


def _fixed_rows(recipe: Recipe, pins: Pins, run: Path) -> dict[str, InputEntry]:
    """Prepared rows by the names and contents of their files, and the folders of the tokenizers that made them."""
    cache, entries = HashCache(hash_cache(run)), dict[str, InputEntry]()
    for rows in recipe.mix.fixed_rows:
        hashes = {file.location: cache.hash(file.path) for file in fixed_files(rows.path)}
        mark = fingerprint("fixed_rows", 1, hashes, {})
        entries[f"fixed_rows:{rows.name}"] = InputEntry(path=rows.path, fingerprint=mark)
        if rows.tokenizer == BASE:
            continue
        folder = _tokenizer_folder(rows.tokenizer, pins)
        files = sorted({path for pattern in TOKENIZER_FILES for path in folder.glob(pattern) if path.is_file()})
        mark = fingerprint("tokenizer", 1, {path.name: cache.hash(path) for path in files}, {})
        entries[f"fixed_rows_tokenizer:{rows.name}"] = InputEntry(path=str(folder), fingerprint=mark)
    if entries:
        cache.save()
    return entries


def _tokenizer_folder(tokenizer: str, pins: Pins) -> Path:
    folder = Path(tokenizer).expanduser()
    return folder if folder.is_dir() else pins.snapshot(tokenizer, kind="model", patterns=TOKENIZER_FILES)[0]


def identify_source(source: Source, run: Path) -> str:
    """Identity by content of all files of a source."""
    from deepen.ingest.stage import source_fingerprint

    return source_fingerprint(source, cache=hash_cache(run))


def hash_cache(run: Path) -> Path:
    """Where hashes of unchanged input files are remembered, shared by the runs under one root."""
    return run.parent / ".hashes.json"


class Pins:
    """What was found at addresses, remembered in the run directory: commits of hub repositories, versions of files."""

    def __init__(self, path: Path, *, offline: bool) -> None:
        self._path, self._offline = path, offline
        remedy = "put it back; or remove it, and what it pinned is looked up anew"
        known = read_object(path, hint=remedy) if path.is_file() else {}
        self._commits: dict[str, str] = {key: value for key, value in known.items() if isinstance(value, str)}
        pinned = {key: value for key, value in known.items() if isinstance(value, dict)}
        self._pinned_files: dict[str, Listing] = {k: v for k, v in pinned.items() if not k.startswith(_FIRST)}
        self._first_files: dict[str, Pin] = {k: v for k, v in pinned.items() if k.startswith(_FIRST)}

    def snapshot(self, repository: str, *, kind: str, patterns: tuple[str, ...]) -> tuple[Path, str]:
        """Local folder and commit of a hub repository (``model`` or ``dataset``); downloads what is not there yet."""
        from huggingface_hub import snapshot_download

        name, _, revision = repository.partition("@")
        pinned = self._commits.get(f"{kind}:{repository}")
        with self._reaching(f"hub {kind} `{repository}`"):
            folder = snapshot_download(
                name, repo_type=kind, revision=pinned or revision or None, allow_patterns=list(patterns),
                local_files_only=self._offline,
            )  # fmt: skip
        commit = Path(folder).name
        if pinned != commit:
            self._commits[f"{kind}:{repository}"] = commit
            self._save()
        return Path(folder), commit

    def remote(self, address: str) -> Path:
        """Local path of the files at an address that fsspec knows; fetches what is not there yet."""
        key = f"files:{address}"
        path, versions = remote_files(address, self._pinned_files.get(key), offline=self._offline)
        if self._pinned_files.get(key) != versions:
            self._pinned_files[key] = versions
            self._save()
        return path

    def first_files(self, source: Source, extraction: Extraction, list_files_there: Callable[[], Remote]) -> Path:
        """Local folder of the first files of a source at an address, as many as its limit takes."""
        key = f"{_FIRST}{source.name}"
        pinned = self._first_files.get(key)
        path, pin = first_files(source, extraction, pinned, None if self._offline else list_files_there)
        if pinned != pin:
            self._first_files[key] = pin
            self._save()
        return path

    def list_dataset(self, repository: str, patterns: Sequence[str], file_format: str) -> Remote:
        """The files of a hub data set that ``patterns`` name, at the commit that is pinned here."""
        _, commit = self.snapshot(repository, kind="dataset", patterns=(CARD,))
        what = f"hub dataset `{repository}`"
        with self._reaching(what):
            remote = list_dataset(repository.partition("@")[0], commit, patterns, file_format)

        def fetch(location: str) -> Path:
            with self._reaching(what):
                return remote.fetch(location)

        return Remote(remote.files, fetch)

    def _save(self) -> None:
        write_json(self._path, {**self._commits, **self._pinned_files, **self._first_files})

    @contextmanager
    def _reaching(self, what: str) -> Iterator[None]:
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        try:
            yield
        except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
            raise self._not_found(what, error) from error

    def _not_found(self, what: str, error: Exception) -> DeepenError:
        if self._offline:
            hint = "run `deepen fetch RECIPE` once with network access"
            return OfflineError(f"{what} is not on this machine, and the run is offline", hint=hint)
        hint = "check the name and the network, or log in with `hf auth login` for a gated repository"
        return SourceError(f"{what} cannot be fetched: {error}", hint=hint)


def resolve_base(base: str | BaseRun | RandomInit, pins: Pins, run: Path) -> ResolvedBase:
    """The base model as a local folder (or as an architecture for random weights) with its identity."""
    if isinstance(base, RandomInit):
        return ResolvedBase(
            name=f"random {base.architecture}", path=None, init=base, fingerprint=fingerprint("init", 1, base, {})
        )
    if isinstance(base, BaseRun):
        return _base_of_run(Path(base.run))
    folder = Path(base).expanduser()
    if folder.is_dir():
        return ResolvedBase(name=folder.name, path=folder, init=None, fingerprint=identify_folder(folder, run))
    folder, commit = pins.snapshot(base, kind="model", patterns=(*_BASE_FILES, *TOKENIZER_FILES))
    return ResolvedBase(name=base, path=folder, init=None, fingerprint=f"hub:{base}@{commit}")


def _held_out_of_run(run: Path) -> InputEntry:
    artifact = open_artifact(run / "curate")
    if artifact is None:
        raise RunError(
            f"`curate.held_out.from: {run}`: that run has no finished curate stage", hint=f"`deepen curate {run}`"
        )
    return InputEntry(path=str(artifact.path), fingerprint=artifact.fingerprint)


def _base_of_run(run: Path) -> ResolvedBase:
    artifact = open_artifact(run / "export")
    if artifact is None:
        raise RunError(
            f"`base: {{run: {run}}}`: that run has no finished export", hint=f"finish it: `deepen run {run}`"
        )
    return ResolvedBase(name=run.name, path=artifact.path, init=None, fingerprint=artifact.fingerprint)


def identify_folder(folder: Path, run: Path) -> str:
    """Identity of a model folder: names and contents of its configuration, weights and tokenizer."""
    cache = HashCache(hash_cache(run))
    patterns = (*_BASE_FILES, *TOKENIZER_FILES)
    files = sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
    if not (folder / "config.json").is_file():
        raise SourceError(f"base `{folder}` has no config.json", hint="give a Hugging Face model folder or a hub id")
    hashes = {path.name: cache.hash(path) for path in files}
    cache.save()
    return fingerprint("base", 1, hashes, {})


class HashCache:
    """Content hashes of files by path, size and modification time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, list[object]] = {}
        with suppress(DamageError):  # nothing is lost: what is not known is hashed
            self._known = read_object(path)

    def hash(self, path: Path) -> str:
        """The file's hash, read again only when its size or time changed."""
        stat, key = path.stat(), str(path.resolve())
        known = self._known.get(key)
        if known is not None and known[:2] == [stat.st_size, stat.st_mtime_ns]:
            return str(known[2])
        self._known[key] = [stat.st_size, stat.st_mtime_ns, hash_file(path)]
        return str(self._known[key][2])

    def save(self) -> None:
        """Remember what was learnt."""
        write_json(self._path, self._known)


def resolve_sources(config: IngestConfig, pins: Pins) -> IngestConfig:
    """Replace ``hf://OWNER/NAME[@REVISION]/PATTERN`` and other addresses by the local folder they were fetched to."""
    return config.model_copy(
        update={"sources": tuple(_resolve_source(source, config.extraction, pins) for source in config.sources)}
    )


def _resolve_source(source: Source, extraction: Extraction, pins: Pins) -> Source:
    if source.tokenizer is not None and not Path(source.tokenizer).is_dir():
        folder, _ = pins.snapshot(source.tokenizer, kind="model", patterns=TOKENIZER_FILES)
        source = source.model_copy(update={"tokenizer": str(folder)})
    if "://" not in source.path:
        return source
    is_limited = source.limit is not None and source.format != MEGATRON  # a pair is two files
    if not source.path.startswith(HUB):
        if is_limited:
            folder = pins.first_files(source, extraction, lambda: list_remote(source.path))
            return source.model_copy(update={"path": str(folder)})
        return source.model_copy(update={"path": str(pins.remote(source.path))})
    owner, name, *pattern = source.path.removeprefix(HUB).split("/")
    inside = "/".join(pattern)
    if is_limited:
        folder = pins.first_files(source, extraction, lambda: _list_hub(source, f"{owner}/{name}", inside, pins))
        return source.model_copy(update={"path": str(folder), "subset": None, "split": None})
    patterns = (inside,) if inside else _patterns_of(f"{owner}/{name}", source, pins)
    folder, _ = pins.snapshot(f"{owner}/{name}", kind="dataset", patterns=as_hub_patterns(patterns))
    paths = [str(folder / one) for one in patterns]
    found = next((path for path in paths if list_files(path, source.format)), None)
    if found is None and len(paths) > 1:
        raise _no_such_split(source)
    return source.model_copy(update={"path": found or paths[0], "subset": None, "split": None})


def _list_hub(source: Source, repository: str, inside: str, pins: Pins) -> Remote:
    patterns = (inside,) if inside else _patterns_of(repository, source, pins)
    remote = pins.list_dataset(repository, patterns, source.format)
    if not remote.files and len(patterns) > 1:
        raise _no_such_split(source)
    return remote


def _no_such_split(source: Source) -> SourceError:
    wanted = ", ".join(f"{key} `{value}`" for key in ("subset", "split") if (value := getattr(source, key)))
    return SourceError(
        f"source `{source.name}`: no file of `{source.path}` belongs to {wanted} by its name",
        hint="give the files themselves: `path: hf://OWNER/NAME/PATTERN`",
    )


def hub_patterns(subset: str | None, split: str | None) -> tuple[str, ...]:
    """Where the files of a subset and split are by the naming rules of hub data sets, the likeliest first."""
    folders = ("", "data/") if subset is None else (f"{subset}/", f"data/{subset}/")
    if split is None:
        return ("**",) if subset is None else tuple(f"{folder}**" for folder in folders)
    return tuple(f"{folder}{split}{rest}" for folder in folders for rest in ("[-._]*", "/**"))


def _patterns_of(name: str, source: Source, pins: Pins) -> tuple[str, ...]:
    """Where the files of a source's subset and split are: where the card says, else where the names say."""
    if source.subset is not None or source.split is not None:
        folder, _ = pins.snapshot(name, kind="dataset", patterns=(CARD,))
        listed = pattern_in_card(name, read_card(folder / CARD), source.subset, source.split or "train")
        if listed is not None:
            return (listed,)
    return hub_patterns(source.subset, source.split)


def fetch(recipe: Recipe, run: Path) -> list[tuple[str, str, str]]:
    """Download and hash everything the recipe needs; returns rows of (what, where, identity)."""
    pins = Pins(run / "pins.json", offline=False)
    base = resolve_base(recipe.base, pins, run)
    rows = [("base", str(base.path or "random weights"), base.fingerprint)]
    for source in resolve_sources(recipe.ingest, pins).sources:
        rows.append((f"source {source.name}", source.path, identify_source(source, run)))
        say(f"{source.name}: ready")
    rows += [(name, entry.path, entry.fingerprint) for name, entry in _fixed_rows(recipe, pins, run).items()]
    return rows
