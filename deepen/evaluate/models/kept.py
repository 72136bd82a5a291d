"""The models of a run that are scored after it: its kept checkpoints and blends of them, each opened when needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING

from deepen.evaluate.models.blends import Blends, planned
from deepen.formats.manifest import StageJob, fingerprint
from deepen.formats.training.checkpoints import CheckpointInfo, read_state
from deepen.formats.training.scores import BlendPart, blend_title
from deepen.formats.training.scores_beside import identity_of
from deepen.model.config import ResolvedBase
from deepen.parallel.config import Compute

if TYPE_CHECKING:
    from deepen.model.loss.model import LossModel


@dataclass(frozen=True)
class Subject:
    """One model to be scored."""

    key: int | str
    """Step of a checkpoint or name of a blend; names its tables."""
    step: int
    tokens: int
    open: Callable[[], LossModel]
    """In evaluation mode on its device; valid until the next one is opened."""
    identity: str
    """Of its weights: that of the checkpoint, or what it is mixed from."""
    blend: tuple[BlendPart, ...] = ()

    @property
    def title(self) -> str:
        """What to call it."""
        return blend_title(self.step, self.blend)


@dataclass
class Models:
    """Opens models of one run; the base is read once for all checkpoints."""

    base: ResolvedBase
    job: StageJob
    compute: Compute

    @cached_property
    def _shared(self) -> LossModel:
        return self._fresh()

    def _fresh(self) -> LossModel:
        from deepen.evaluate.models.subject import open_run_model

        return open_run_model(self.base, self.job.inputs["tokenize"], seed=self.job.seed, compute=self.compute)

    def checkpoint(self, info: CheckpointInfo) -> Subject:
        """A checkpoint as it is."""
        tokens = int(read_state(info)["tokens"])
        return Subject(info.step, info.step, tokens, partial(self._open_checkpoint, info), identity_of(info))

    def _open_checkpoint(self, info: CheckpointInfo) -> LossModel:
        from deepen.evaluate.models.subject import put_weights, share_scoring

        # They hold the weights before these, in memory that the new ones need.
        self._shared.copies = ()
        put_weights(self._shared, info, self.base)
        return share_scoring(self._shared, self.compute)

    def blends(self, config: Blends, checkpoints: Sequence[CheckpointInfo]) -> Iterator[Subject]:
        """What ``config`` asks for of these checkpoints, which come by rising step."""
        by_step = {info.step: info for info in checkpoints}
        for name, parts in planned(config, list(by_step)):
            newest = by_step[max(part.step for part in parts if part.step is not None)]
            opened = partial(self._open_blend, parts, by_step)
            mixed = {str(part.step): identity_of(by_step[part.step]) for part in parts if part.step is not None}
            mark = fingerprint("blend", 1, {"parts": parts}, mixed)
            yield Subject(name, newest.step, int(read_state(newest)["tokens"]), opened, mark, parts)

    def _open_blend(self, parts: Sequence[BlendPart], by_step: dict[int, CheckpointInfo]) -> LossModel:
        from deepen.evaluate.models.subject import open_blend, share_scoring

        if "_shared" in self.__dict__:
            self._shared.copies = ()  # their memory is needed
        checkpoints = [(None if part.step is None else by_step[part.step], part.weight) for part in parts]
        return share_scoring(open_blend(checkpoints, self._fresh, self.base), self.compute)
