"""`deepen init`: a first recipe with comments, small enough to read, sound once the paths are right."""

from __future__ import annotations

from pathlib import Path

from deepen.errors import DeepenError
from deepen.formats.files.atomic import write_bytes

STARTER = """\
# A first recipe. `deepen explain KEY` says what a key means; `deepen check` finds what is wrong before any work.
name: my-domain
base: path/to/model                 # a Hugging Face folder or hub id, or {run: runs/earlier}
seed: 17

ingest:
  sources:
    # What the model should learn ...
    - {name: domain, role: domain, path: "data/domain/**/*.jsonl", licence: unknown}
    # ... and general text like that of its pretraining, so that it does not forget.
    - {name: general, role: replay, path: "data/general/*.jsonl.zst", licence: unknown}

mix:
  sequence_length: 1024
  domain_share: 0.7                 # of the tokens; the rest is replay

train:
  tokens: 20M tokens
  batch_tokens: 65536
  learning_rate: 3e-5               # about a tenth of the peak of the base's pretraining
  schedule: {use: cosine, warmup: 1%, floor: 0.1x}

evaluate:
  every: 10%
  forgetting: {budget: 3%}          # how much worse general text may become
"""


def write_starter(path: Path, *, force: bool) -> None:
    """Write the starter recipe to ``path``; refuses to overwrite a file unless ``force``."""
    if path.exists() and not force:
        raise DeepenError(f"`{path}` exists already", hint="give another path, or --force")
    write_bytes(path, STARTER.encode())
