"""Parts that users wrote elsewhere keep loading: where they import from stays where it is."""

import importlib
import sys

import pytest

from deepen.recipe.reading import load

RULE = """
from typing import Literal

from deepen.curate.step import BatchStep, CorpusStep, Document, DocumentStep, Drop, Drops, Judgement, judged


class NoDigits(DocumentStep):
    use: Literal["users_rule:NoDigits"] = "users_rule:NoDigits"
    most: int = 0

    def apply(self, document: Document) -> Document | Drop:
        count = sum(map(str.isdigit, document.text))
        return Drop("digits", count) if count > self.most else document
"""
PROBE = """
from typing import Literal

from deepen.evaluate.probes.probe import Probe


class Silence(Probe):
    use: Literal["users_probe:Silence"] = "users_probe:Silence"
    ability: Literal["new", "kept"] = "kept"

    def prepare(self, material):
        return lambda model: None

    def subset(self, material, baseline):
        return {}

    def compare(self, base, model, material, *, seed, resamples):
        return []

    def summary(self, table):
        return {}
"""
RECIPE = """\
name: users
base: {{init: random, hidden_size: 32, layers: 2, heads: 2, intermediate_size: 64, max_length: 32}}
ingest: {{sources: [{{name: one, role: domain, path: {root}/text.jsonl}}]}}
curate: {{steps: [{{use: "users_rule:NoDigits", most: 2}}]}}
tokenize: {{vocabulary: {{train: 300}}}}
mix: {{sequence_length: 32}}
train: {{tokens: 1M tokens, batch_tokens: 8192, learning_rate: 1e-3}}
evaluate: {{probes: [held_out, "users_probe:Silence"]}}
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    for name, text in (
        ("users_rule.py", RULE),
        ("users_probe.py", PROBE),
        ("recipe.yaml", RECIPE.format(root=tmp_path)),
    ):
        (tmp_path / name).write_text(text)
    (tmp_path / "text.jsonl").write_text('{"text": "some words"}\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield tmp_path / "recipe.yaml"
    for name in ("users_rule", "users_probe"):
        sys.modules.pop(name, None)


def test_plugs_written_against_the_old_places_still_load(recipe):
    loaded = load(recipe).recipe
    (step,) = loaded.curate.document_steps
    assert type(step).__module__ == "users_rule" and step.most == 2
    assert [type(probe).__module__ for probe in loaded.evaluate.probes][-1] == "users_probe"
