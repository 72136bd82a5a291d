"""`deepen remix`: another mixture for the rest of a training that was stopped, from some step on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from deepen.errors import RunError
from deepen.formats.manifest import open_artifact
from deepen.formats.tokens.order import Order, Segments, appended_files
from deepen.formats.training.checkpoints import newest_intact
from deepen.formats.training.decisions import Decision
from deepen.mix.order.remix import Change, domain_share_at, remix
from deepen.progress import say
from deepen.runs.directory import check_is_run, stage_directory
from deepen.runs.lock import locked


@dataclass(frozen=True)
class Remix:
    """What a user asks to be mixed otherwise."""

    step: int
    """The change holds after this optimizer step."""
    domain_share: float
    weights: Mapping[str, float] | None = None
    reason: str = ""


def parse_weights(given: list[str] | None) -> dict[str, float] | None:
    """Read ``["papers=2", "notes=1"]``; raises ``RunError`` for what is no weight."""
    weights = {}
    for text in given or []:
        name, _, value = text.partition("=")
        try:
            weights[name] = float(value)
        except ValueError:
            raise RunError(f"`{text}` is no weight", hint="write SOURCE=NUMBER, such as papers=2") from None
    return weights or None


def remix_run(run: Path, asked: Remix) -> tuple[Path, Segments]:
    """Append the changed rest of the order to the training of ``run``, which reads it when it goes on.

    Raises ``RunError`` when training is going on, has not begun, is finished, or is past the step.
    """
    check_is_run(run)
    with locked(run):
        mix, train = open_artifact(stage_directory(run, "mix")), stage_directory(run, "train")
        if mix is None or not train.is_dir():
            raise RunError(
                f"the training of `{run}` has not begun", hint="set mix.domain_share in the recipe, and run it"
            )
        if open_artifact(train) is not None:
            raise RunError(
                f"the training of `{run}` is finished",
                hint="a new run with `base: {run: ...}` goes on from its model with another mixture",
            )
        newest = newest_intact(train / "checkpoints", say)
        reached = newest.step if newest is not None else 0
        if reached > asked.step:
            raise RunError(
                f"the newest checkpoint is of step {reached}, beyond step {asked.step}: what was trained stays",
                hint=f"give --at {reached} or more; or remove the checkpoints after step {asked.step}",
            )
        order = Order.open(mix.path, *appended_files(train / "order"))
        change = Change(
            batch=order.batch_of_step(asked.step + 1),
            domain_share=asked.domain_share,
            weights=asked.weights,
            reason=asked.reason,
            parent_step=reached,
        )
        return remix(mix.path, train / "order", change)


def replay_changes(mix: Path, order_directory: Path) -> Callable[[Decision], None]:
    """What a training calls when it decides on more replay, or on giving some of it back.

    ``decision.details["by"]`` is what replay's share of tokens grows by, from ``decision.batch`` on; it never falls
    below what the recipe planned there. Raises ``DeepenError`` where the share cannot change.
    """

    def change(decision: Decision) -> None:
        planned, now = domain_share_at(mix, order_directory, decision.batch)
        share = round(min(max(now - float(decision.details["by"]), 0.0), max(planned, now)), 12)
        if share == now:
            raise RunError(f"{1 - now:.0%} of the tokens are replay there already, which is as far as it goes")
        asked = Change(
            batch=decision.batch, domain_share=share, reason=decision.reason, parent_step=decision.parent_step
        )
        remix(mix, order_directory, asked)

    return change
