"""The probe of held-out documents: bits per byte of every source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from deepen.evaluate.probes.probe import Probe
from deepen.settings import Count, Share

if TYPE_CHECKING:
    import pyarrow as pa

    from deepen.evaluate.documents.material import Material
    from deepen.evaluate.probes.probe import Measure
    from deepen.formats.training.scores import Score


class HeldOut(Probe):
    """Bits per byte of the held-out documents of every source."""

    use: Literal["held_out"] = "held_out"
    context: Annotated[Count, Field(ge=2)] = 2048
    """Tokens of context at most, fewer when the model has fewer positions; longer documents are read in overlapping
    windows. The same number for base and checkpoints, so that differences come from the weights alone."""
    stride: Annotated[Share, Field(gt=0)] = 0.5
    """Step from window to window as a share of the context. At one half every token has at least half a context before
    it (once the document has that much), at twice the cost of no overlap."""
    in_loop_tokens: Annotated[Count, Field(ge=1)] = 50_000
    """Scored tokens per source during training, chosen once by smallest content hash; full evaluation uses all."""

    def prepare(self, material: Material) -> Measure:
        """Encode the held-out documents; see ``Probe.prepare``."""
        from deepen.evaluate.documents.windows import prepare

        return prepare(material, context=self.context, stride=self.stride)

    def subset(self, material: Material, baseline: pa.Table) -> Mapping[str, Sequence[str]]:
        """Documents with the smallest content hashes, per source until ``in_loop_tokens`` is reached."""
        from deepen.evaluate.documents.material import smallest_hashes

        return smallest_hashes(material, baseline, tokens_per_source=self.in_loop_tokens)

    def compare(self, base: pa.Table, model: pa.Table, material: Material, *, seed: int, resamples: int) -> list[Score]:
        """One score per source, then one per ability."""
        from deepen.evaluate.compare.documents import compare

        return compare(base, model, material.abilities, probe=self.label, seed=seed, resamples=resamples)

    def slices(self, base: pa.Table, model: pa.Table, material: Material, *, seed: int, resamples: int) -> list[Score]:
        """One score per category and language, and ability."""
        from deepen.evaluate.documents.slices import slice_scores

        return slice_scores(base, model, material, probe=self.label, seed=seed, resamples=resamples)

    def summary(self, table: pa.Table) -> dict[str, Any]:
        """Documents, documents scored and bits per byte of all sources together."""
        from deepen.evaluate.documents.likelihoods import summary

        return summary(table, None)
