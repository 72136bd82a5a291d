"""The recipe of a tiny run over three small sources, for tests of whole runs and of looking at them."""

import json
import random

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
