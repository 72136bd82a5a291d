"""Settings of `mix`: how documents share rows, and in which proportion sources are trained."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from deepen.settings import Count, Settings, Share


class MixConfig(Settings):
    """How token shards become one training order."""

    sequence_length: Count = Field(default=2048, ge=2)
    """Positions in a training row, in tokens. At most what the base was made for."""
    packing: Literal["best_fit", "concatenate"] = "best_fit"
    """How documents share a row. best_fit cuts only documents longer than a row (Ding et al. 2024, arXiv:2404.10830:
    fewer needless cuts, better reading comprehension at equal loss); concatenate is the classic splice that cuts at
    every row's end. Neither drops a token."""
    domain_share: Share | None = None
    """Share of *tokens* from domain sources, the rest is replay. None: 0.7 when there is a replay source, 1 when there
    is not. Published replay ranges from 1 % (Meditron, arXiv:2311.16079) to 50 % (Ibrahim et al. 2024,
    arXiv:2403.08763); D-CPT (arXiv:2406.01375) finds optimal domain shares of 0.73 to 0.92, CMR (arXiv:2407.17467)
    0.30 to 0.48. 0.7 leans towards keeping old skills."""
    max_epochs: float = Field(default=4.0, gt=0)
    """How often a source may be repeated. Beyond 4 passes repeated tokens are worth clearly less than new ones
    (Muennighoff et al. 2023, arXiv:2305.16264: 4 epochs cost 0.5 % of loss against unique data)."""
