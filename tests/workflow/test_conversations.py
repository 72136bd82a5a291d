"""Conversations the whole way, from messages to an exported model that is asked as it was trained."""

import json
import os
import random

import pytest

from deepen.formats.manifest import open_artifact
from deepen.formats.tokens.trained import TrainedMask
from deepen.recipe.reading import load
from deepen.runs.account import account
from deepen.runs.show.artifact import ShowOptions, show
from deepen.workflow.run import RunOptions, run_pipeline

DATA = os.environ.get("DEEPEN_TEST_DATA")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not DATA, reason="DEEPEN_TEST_DATA is not set")]

RECIPE = """\
name: chat
base: {data}/model_tinystories_656k
ingest:
  sources:
    - {{name: chat, role: domain, path: {root}/chat.jsonl}}
    - {{name: prompts, role: replay, path: {root}/prompts.jsonl}}
curate: {{steps: [normalize], held_out: {{share: 2%, at_least: 5}}}}
mix: {{sequence_length: 128, domain_share: 0.6, max_epochs: 16}}
train: {{tokens: 10240, batch_tokens: 1024, learning_rate: 1e-3}}
evaluate: {{every: 50%}}
"""
NAMES, THINGS = ("Tom", "Lily", "Ben", "Mia", "Sam"), ("ball", "cat", "boat", "tree", "cake")


def talks(count):
    chance = random.Random(5)
    for number in range(count):
        name, thing = chance.choice(NAMES), chance.choice(THINGS)
        turns = [
            ("user", f"Who has {number} things? </s>"),
            ("assistant", f"{name} had a {thing}, it was number {number}."),
        ]
        turns += [("user", "And then?"), ("assistant", f"Then {name} was happy and slept.")] * (number % 2)
        turns = [("system", "Tell stories.")] * (number % 3 == 0) + turns
        yield {"messages": [{"role": role, "content": content} for role, content in turns]}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("chat")
    (root / "chat.jsonl").write_text("".join(json.dumps(talk) + "\n" for talk in talks(150)))
    prompts = [
        {"source": f"Once {n} times ", "target": f"a child went to the park {n}.", "category": "c"} for n in range(150)
    ]
    (root / "prompts.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    (root / "recipe.yaml").write_text(RECIPE.format(data=DATA, root=root))
    loaded = load(root / "recipe.yaml", None, ["machine.workers=1"])
    run_pipeline(loaded.recipe, loaded.machine, root / "runs/chat", RunOptions(offline=True))
    return root / "runs/chat"


def test_the_account_balances_with_masked_tokens(run):
    lines = account(run)
    assert lines and all(line.balances for line in lines)
    counts = open_artifact(run / "train").counts["sources"]
    assert all(counts[name]["masked"] > 0 and counts[name]["loss_tokens"] > 0 for name in ("chat", "prompts"))


def test_targets_are_answers_and_their_ends(run):
    shown = [record for record in show(run / "tokenize", ShowOptions(sample=3)) if "document" in record]
    assert len(shown) == 6
    for record in shown:
        assert "User:" not in record["text"].split("\u27e7", 1)[1].split("\u27e6")[0]
        assert record["targets"] < record["tokens"]
    assert TrainedMask.open(run / "tokenize/shards/chat").is_masked


def test_the_exported_model_carries_the_template(run):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(run / "export")
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "why?"}], tokenize=False, add_generation_prompt=True
    )
    assert asked == "User: why?\n\nAssistant:"
