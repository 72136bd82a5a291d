import json
import random

import pytest

WORDS = (
    "time person year way day thing man world life hand part child eye woman place work week case point group".split()
)


def sentences(name, count, seed=3):
    """Distinct small documents of one flavour."""
    generator = random.Random(f"{name}{seed}")
    for index in range(count):
        words = [
            f"{generator.choice(WORDS)}{name[0] * generator.randint(0, 3)}" for _ in range(generator.randint(20, 60))
        ]
        yield f"{name} {index} " + " ".join(words)


def write_jsonl(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


TINY = """\
name: tiny
base: {{init: random, hidden_size: 32, layers: 2, heads: 2, intermediate_size: 64, max_length: 32}}
ingest:
  sources:
    - {{name: code, role: domain, path: {root}/code.jsonl, licence: MIT}}
    - {{name: prose, role: replay, path: {root}/prose.jsonl}}
    - {{name: other, role: watch, path: {root}/other.jsonl}}
curate: {{steps: [normalize, exact_duplicates], held_out: {{share: 5%, at_least: 5 documents, cap: 2k tokens}}}}
tokenize: {{vocabulary: {{train: 400}}}}
mix: {{sequence_length: 32, domain_share: 0.6, max_epochs: 16}}
train:
  tokens: 1920
  batch_tokens: 192
  learning_rate: 1e-2
  schedule: {{use: wsd, warmup: 1 steps, decay: 20%}}
  save: {{every: 2 steps, keep: 2}}
evaluate: {{every: 50%}}
"""


@pytest.fixture
def tiny(tmp_path):
    """A folder with three small sources and a recipe over them; returns the recipe's path."""
    for name in ("code", "prose", "other"):
        write_jsonl(tmp_path / f"{name}.jsonl", sentences(name, 60))
    (tmp_path / "recipe.yaml").write_text(TINY.format(root=tmp_path))
    return tmp_path / "recipe.yaml"


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    """One finished run of the tiny recipe, for tests that only look; returns its directory."""
    from deepen.recipe.reading import load
    from deepen.workflow.run import RunOptions, run_pipeline

    root = tmp_path_factory.mktemp("finished")
    for name in ("code", "prose", "other"):
        write_jsonl(root / f"{name}.jsonl", sentences(name, 60))
    (root / "recipe.yaml").write_text(TINY.format(root=root))
    loaded = load(root / "recipe.yaml", None, ["machine.workers=1"])
    run_pipeline(loaded.recipe, loaded.machine, root / "runs" / "tiny", RunOptions(offline=True))
    return root / "runs" / "tiny"
