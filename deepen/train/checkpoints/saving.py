"""Saving in the background: training goes on while its state is copied, hashed, written and synced.

Weights and moments only change when an optimizer steps. So the copy is made by a thread during the next step's forward
and backward, and the optimizer waits for it if it is not done by then; all else happens on the copy. What is written is
byte for byte what would have been written at once. One checkpoint is written at a time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from deepen.errors import DeepenError, TrainingError
from deepen.formats.files.atomic import sync_file
from deepen.formats.training.roles import prune
from deepen.progress import readable, say
from deepen.train.checkpoints.copying import StateCopy, available_memory_bytes, fits_into_memory
from deepen.train.checkpoints.files import Keeping, Snapshot, snapshot_of, write_checkpoint
from deepen.train.checkpoints.sharded import Shards

# After an error: partners may be dead, and the writing thread would wait for them until its group times out.
_SECONDS_FOR_OTHERS = 30.0

Write = Callable[[Snapshot], object]
"""Writes a checkpoint and removes those that need not stay; returns when all of it is durable."""


def write_and_prune(directory: Path, keeping: Keeping, metrics: Path, snapshot: Snapshot) -> None:
    """Write a checkpoint into ``directory`` and remove those that need not stay.

    ``metrics``, the record of all steps up to it, is on the disk before the checkpoint is: who resumes needs it whole.
    """
    if metrics.is_file():
        sync_file(metrics)
    write_checkpoint(directory, snapshot)
    # After the new one is durable: at no moment is there no complete checkpoint.
    prune(directory, keeping.newest, weights_only=keeping.weights_only)


class Saver:
    """Writes checkpoints, one at a time, while training goes on.

    What moves weights or moments other than by an optimizer's ``step`` (loading a checkpoint, say) must call ``wait``
    before it does.
    """

    def __init__(
        self, write: Write, device: torch.device, *, background: bool = True, shards: Shards | None = None
    ) -> None:
        """``write`` is called with a copy on the CPU, in a thread; with the run's own tensors, at once, if not
        ``background``. ``shards`` when the state is spread over processes: then ``write`` is its ``write``."""
        self.background = background
        self.shards = shards
        self.take: Callable[..., Snapshot] = snapshot_of if shards is None else shards.snapshot
        """Takes what ``save`` takes; called as ``snapshot_of`` is."""
        self.stall_seconds = 0.0
        """How long training stood still for saving since ``take_stall_seconds`` was called."""
        self._write = write
        # A stream of its own: on that of training a copy would stand in line between the kernels of the step.
        self._stream = torch.cuda.Stream(device) if background and device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._state_copy = StateCopy()
        self._thread: threading.Thread | None = None
        self._may_move = threading.Event()
        self._copying = False
        self._depth = 0
        self._hook: RemovableHandle | None = None
        self._failure: tuple[int, Exception] | None = None

    def save(self, snapshot: Snapshot) -> None:
        """Save ``snapshot``, whose tensors may be the run's own; waits for the checkpoint before it, if need be.

        Raises what ``check`` raises, for the checkpoint before and, in the foreground, for this one.
        """
        with self.standing_still():
            # There is one block of memory. A disk that is slower than saves come shows up here, as a stall.
            self.wait()
            if self.background and not self._has_memory(snapshot):
                # For good: memory that is short now will be short again, and once is enough to say so.
                self.background = False
            if self.background:
                self._begin(snapshot)
            else:
                self._try_to_write(snapshot)
                self.check()

    def check(self) -> None:
        """Raise ``TrainingError`` if a checkpoint could not be written; costs nothing, so ask at every step."""
        if self._failure is not None:
            # Taken away as it is raised, so that closing does not tell it a second time.
            (step, error), self._failure = self._failure, None
            if isinstance(error, DeepenError):
                raise error
            if isinstance(error, OSError):
                raise cannot_write(step, error) from error
            raise error

    def wait(self) -> None:
        """Return when nothing is being written any more; raises as ``check`` does."""
        with self.standing_still():
            if self._thread is not None:
                self._thread.join()
                self._thread = None
                # The copy is over by now; this clears the flag, so that no later update asks for it.
                self._before_update()
            if self._hook is not None:  # not in the hook itself: PyTorch goes through its hooks while they run
                self._hook.remove()
                self._hook = None
        self.check()

    def close(self) -> None:
        """Wait, and give the memory of the copy back; a failure is said and not raised, for where another error is
        on its way already."""
        try:
            self.wait()
        except (DeepenError, OSError) as error:
            say(f"train: {error}")
        self._state_copy.free()

    def __enter__(self) -> Self:
        """For ``with``: whatever ends the block, nothing is being written any more afterwards."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close; but who interrupts from the keyboard once more is not made to wait, and after an error nobody waits
        long for other processes, which may be gone."""
        if self.shards is not None and kind is not None and self._thread is not None:
            self._thread.join(_SECONDS_FOR_OTHERS)
            if self._thread.is_alive():
                return
        if kind is not KeyboardInterrupt:
            self.close()

    @contextmanager
    def standing_still(self) -> Iterator[None]:
        """Count the time of the block as one in which training stands still; blocks within it count once."""
        started, self._depth = time.perf_counter(), self._depth + 1
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0:
                self.stall_seconds += time.perf_counter() - started

    def take_stall_seconds(self) -> float:
        """How long training stood still for saving since this was called last."""
        seconds, self.stall_seconds = self.stall_seconds, 0.0
        return seconds

    def _has_memory(self, snapshot: Snapshot) -> bool:
        more = self._state_copy.grows_by(snapshot)
        if more == 0 or fits_into_memory(more):
            return True
        say(
            f"train: saving in the background needs {readable(more)} bytes of memory for a copy of the state, "
            f"{readable(available_memory_bytes())} are free: from here on training stands still while it saves "
            "(`compute.background_saves: false` in the machine file does this from the start)"
        )
        return False

    def _begin(self, snapshot: Snapshot) -> None:
        self._may_move = threading.Event()
        self._copying = True
        # On the steps of all optimizers: the run may change to another one before it steps (when new rows first ends).
        self._hook = register_optimizer_step_pre_hook(self._before_update)
        if self._stream is not None:  # what the step before put on the GPU comes first
            self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        # A daemon: whoever interrupts twice gets out at once, and the next start removes the half-written folder.
        self._thread = threading.Thread(target=self._work, args=(snapshot,), name="checkpoint", daemon=True)
        self._thread.start()

    def _work(self, snapshot: Snapshot) -> None:
        try:
            copied = self._state_copy.copy(snapshot, self._stream, self._may_move.set)
        except Exception as error:  # raised where training asks: a thread has nobody to tell
            self._failure = (int(snapshot.state["step"]), error)
            return
        finally:
            # Also after a failure, or the next update would wait for ever.
            self._may_move.set()
        self._try_to_write(copied)

    def _try_to_write(self, snapshot: Snapshot) -> None:
        try:
            self._write(snapshot)
        except Exception as error:
            self._failure = (int(snapshot.state["step"]), error)

    def _before_update(self, *_: Any) -> None:
        """Called before any optimizer steps while a copy may be under way: the copy comes first."""
        # Every update passes here; the first one after a save is the only one that may have to wait.
        if not self._copying:
            return
        with self.standing_still():
            self._may_move.wait()
            if self._stream is not None:
                # The update is queued behind the copy on the GPU; the CPU goes on.
                torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)
            self._copying = False


def cannot_write(step: int, error: OSError) -> TrainingError:
    """The error for a checkpoint or record that the system did not take."""
    return TrainingError(
        f"after step {step}: {error}",
        hint="make room (or mend the disk) and run the same command again: it goes on from the last checkpoint",
    )
