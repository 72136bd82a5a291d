"""Settings of ``curate``: the steps in their order, and what is held out."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field, field_validator

from deepen.curate.contamination.decontaminate import Decontaminate
from deepen.curate.duplicates.exact_duplicates import ExactDuplicates
from deepen.curate.duplicates.near_duplicates import NearDuplicates
from deepen.curate.rules.boilerplate_lines import BoilerplateLines
from deepen.curate.rules.c4 import C4
from deepen.curate.rules.fineweb import FineWeb
from deepen.curate.rules.gopher_quality import GopherQuality
from deepen.curate.rules.gopher_repetition import GopherRepetition
from deepen.curate.rules.language import Language
from deepen.curate.rules.length import LengthStep
from deepen.curate.rules.limit import Limit
from deepen.curate.rules.normalize import Normalize
from deepen.curate.rules.quarantine import Quarantine
from deepen.curate.step import CorpusStep, CurateStep, DocumentStep, Step
from deepen.errors import Problem
from deepen.plug import Plug, plug_from
from deepen.settings import Count, Many, Settings, Share

STEPS: dict[str, type[Plug]] = {
    "normalize": Normalize,
    "length": LengthStep,
    "language": Language,
    "gopher_quality": GopherQuality,
    "gopher_repetition": GopherRepetition,
    "fineweb": FineWeb,
    "c4": C4,
    "boilerplate_lines": BoilerplateLines,
    "decontaminate": Decontaminate,
    "exact_duplicates": ExactDuplicates,
    "near_duplicates": NearDuplicates,
    "limit": Limit,
}


class HeldOutConfig(Settings):
    """Documents that are never trained on, to measure bits per byte before, during and after training."""

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True, serialize_by_alias=True)

    share: Share = 0.005
    """Share of each source's documents. Our choice: tight intervals at small cost."""
    at_least: Annotated[Count, Field(ge=0)] = 100
    """Smallest number of documents per source: with fewer, intervals by document are wide. A source never loses more
    than a tenth of its documents to this split, so one of 200 documents gives at most 20."""
    cap: Annotated[Count, Field(ge=0)] = 2_000_000
    """Largest number of tokens per source, counted as UTF-8 bytes / 4: what is scored at every evaluation."""
    from_run: str | None = Field(default=None, alias="from")
    """Hold out exactly what this earlier run held out (by content), so that scores compare between runs and chained
    runs never train on it. Sources that the earlier run did not have are split by the rules above."""


class CurateConfig(Settings):
    """What is done to documents before they are trained on."""

    steps: Many[Annotated[CurateStep, plug_from(STEPS)]] = (
        Normalize(),
        LengthStep(),
        GopherRepetition(),
        ExactDuplicates(),
    )
    """Steps on documents run in the order given; then documents are held out; then steps on the corpus
    (``exact_duplicates``, ``near_duplicates``) run in the order given."""
    held_out: HeldOutConfig = HeldOutConfig()
    """The split for measuring."""
    quarantine: Many[str] = ()
    """Lists of documents that are left out from the start, as `deepen quarantine RUN` prints them: what an earlier
    training stumbled over (OLMo 2, arXiv 2501.00656, traced spikes to text with long repeats, and filtered it)."""

    @field_validator("steps", mode="after")
    @classmethod
    def _are_steps(cls, steps: tuple[Plug, ...]) -> tuple[Plug, ...]:
        for step in steps:
            if not isinstance(step, DocumentStep | CorpusStep):
                raise ValueError(f"`{step.use}` is no curation step (neither a DocumentStep nor a CorpusStep)")
        return steps

    @property
    def document_steps(self) -> tuple[DocumentStep, ...]:
        """The steps that see one document at a time."""
        first = (Quarantine(files=self.quarantine),) if self.quarantine else ()
        return (*first, *(step for step in self.steps if isinstance(step, DocumentStep)))

    @property
    def corpus_steps(self) -> tuple[CorpusStep, ...]:
        """The steps that see all documents."""
        return tuple(step for step in self.steps if isinstance(step, CorpusStep))


def problems(config: CurateConfig, sources: Collection[str] | None = None) -> list[Problem]:
    """What the disk and the names of the sources (None: not known) say against the settings.

    No held-out documents where to take them from, no test items, limits of sources that are not there.
    """
    found = [
        replace(problem, path=f"curate.steps[{number}].{problem.path}")
        for number, step in enumerate(config.steps)
        if isinstance(step, Step)
        for problem in step.problems(sources)
    ]
    listed = Quarantine(files=config.quarantine).problems(sources)
    found += [replace(problem, path=problem.path.replace("files", "curate.quarantine", 1)) for problem in listed]
    run = config.held_out.from_run
    if run is not None and not (Path(run).expanduser() / "curate" / "manifest.json").is_file():
        remedy = "give the folder of a run whose `curate` stage is finished"
        message = "no finished curate stage here"
        found.append(Problem(path="curate.held_out.from", message=message, remedy=remedy, value=run))
    return found
