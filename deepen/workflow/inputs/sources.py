"""Sources at addresses become sources in local folders: fetched if allowed, pinned, read like any other."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from deepen.errors import SourceError
from deepen.ingest.config import HUB, Extraction, IngestConfig, Source
from deepen.ingest.files import MEGATRON, list_files
from deepen.mix.config import MixConfig
from deepen.mix.fixed.config import BASE
from deepen.model.config import TOKENIZER_FILES
from deepen.workflow.inputs.hub import CARD, as_hub_patterns, pattern_in_card, read_card
from deepen.workflow.inputs.pins import Pins
from deepen.workflow.inputs.remote import Remote, list_remote


def resolve_tokenizers(config: MixConfig, pins: Pins) -> dict[str, Path]:
    """Local folders of the tokenizers that made prepared rows, by the rows' names; the base's is not among them."""
    found: dict[str, Path] = {}
    for rows in config.fixed_rows:
        if rows.tokenizer != BASE:
            folder = Path(rows.tokenizer).expanduser()
            if not folder.is_dir():
                folder, _ = pins.snapshot(rows.tokenizer, kind="model", patterns=TOKENIZER_FILES)
            found[rows.name] = folder
    return found


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
    if source.limit is None or source.format == MEGATRON:  # a pair is two files
        return _fetched_whole(source, pins)
    lists = partial(_list_hub, source, pins) if source.path.startswith(HUB) else partial(list_remote, source.path)
    folder = pins.first_files(source, extraction, lists)
    return source.model_copy(update={"path": str(folder), "subset": None, "split": None})


def _fetched_whole(source: Source, pins: Pins) -> Source:
    if not source.path.startswith(HUB):
        return source.model_copy(update={"path": str(pins.remote(source.path))})
    repository, patterns = _named_on_hub(source, pins)
    folder, _ = pins.snapshot(repository, kind="dataset", patterns=as_hub_patterns(patterns))
    paths = [str(folder / one) for one in patterns]
    found = next((path for path in paths if list_files(path, source.format)), None)
    if found is None and len(paths) > 1:
        raise _no_such_split(source)
    return source.model_copy(update={"path": found or paths[0], "subset": None, "split": None})


def _named_on_hub(source: Source, pins: Pins) -> tuple[str, tuple[str, ...]]:
    """The repository that a source at ``hf://`` names, and where its files may lie in it, the likeliest first."""
    owner, name, *pattern = source.path.removeprefix(HUB).split("/")
    repository, inside = f"{owner}/{name}", "/".join(pattern)
    return repository, (inside,) if inside else _patterns_of(repository, source, pins)


def _list_hub(source: Source, pins: Pins) -> Remote:
    repository, patterns = _named_on_hub(source, pins)
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
