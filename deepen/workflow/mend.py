"""Finished work that is not as it was written is never "up to date": it is refused with the remedy, or with ``--redo``
what is damaged is made anew.

Only what is damaged is made: data stages and evaluation take over what is intact, training goes on from the newest
intact checkpoint.
"""

from __future__ import annotations

from dataclasses import replace

from deepen.errors import DamageError
from deepen.formats.manifest import MANIFEST, Artifact, begin_stage, open_artifact
from deepen.formats.training.checkpoints import list_checkpoints, remove_checkpoint, verify
from deepen.formats.unchanged import all_faults, refuse_damaged, remedy, small_faults
from deepen.progress import say
from deepen.workflow.redo import aside_of, swap_in
from deepen.workflow.stage_plan import StagePlan, make_stage

_CHECKPOINTS = "checkpoints/"


def finished(plan: StagePlan, *, redo: bool, whole: bool) -> Artifact | None:
    """The stage's finished result if it has the fingerprint that is planned, checked and, with ``redo``, mended; else
    None. Small files are hashed, or with ``whole`` all.

    Raises ``DamageError`` for damage that is not mended here.
    """
    try:
        found = open_artifact(plan.directory)
    except DamageError as error:
        if not redo:
            raise DamageError(error.message, hint=remedy(plan.directory)) from error
        return _mend(plan, [error.message])
    if found is None or found.fingerprint != plan.fingerprint:
        return None
    faults = all_faults(found) if whole else small_faults(found)
    if faults and redo and found.path == plan.directory:
        return _mend(plan, faults)
    refuse_damaged(found, faults)  # what another run holds is mended there
    say(f"{plan.stage.name} is up to date")
    return found


def _mend(plan: StagePlan, faults: list[str]) -> Artifact:
    """Make anew what is damaged of a finished result."""
    name, directory = plan.stage.name, plan.directory
    others = [fault for fault in faults if f"{directory / _CHECKPOINTS}" not in fault]
    only_checkpoints = all(str(directory / MANIFEST) in fault for fault in others)
    say(f"{name}: made anew where it is damaged: {'; '.join(faults)}")
    if name == "train" and only_checkpoints:
        _open_training_again(plan)
        return make_stage(plan, directory)
    aside = aside_of(plan)
    made = open_artifact(aside) or make_stage(plan, aside)
    swap_in(directory, aside, must_extend=False)
    return replace(made, path=directory)


def _open_training_again(plan: StagePlan) -> None:
    """Make finished training unfinished, at its newest intact checkpoint; safe to repeat after a kill."""
    directory = plan.directory
    begin_stage(plan.job(directory), stage="train", format_number=plan.stage.format_number(), config=None)
    (directory / MANIFEST).unlink(missing_ok=True)
    for info in list_checkpoints(directory / _CHECKPOINTS):
        if problems := verify(info):
            say(f"train: checkpoint {info.path.name} is removed: {'; '.join(problems)}")
            remove_checkpoint(info)
