"""A Megatron pair as a source goes the whole way to a trained checkpoint; `deepen tokenize --input` makes one."""

import pytest

from deepen.recipe.reading import load
from deepen.runs.account import account
from deepen.tokenize.vocabulary.tokenizer import train_tokenizer
from deepen.workflow.commands.tokenize_files import TokenizeFiles, tokenize_files
from deepen.workflow.run import RunOptions, run_pipeline


@pytest.mark.slow
def test_a_pair_trains_like_any_source(tiny):
    root = tiny.parent
    texts = (root / "code.jsonl").read_text().splitlines()
    train_tokenizer(texts, 300, root / "base", workers=1)
    made = tokenize_files(TokenizeFiles((str(root / "code.jsonl"),), str(root / "base" / "tokenizer"), root / "pairs"))
    as_pair = f"path: {root}/pairs/dataset, format: megatron, tokenizer: {root}/base/tokenizer"
    tiny.write_text(tiny.read_text().replace(f"path: {root}/code.jsonl", as_pair))
    loaded = load(tiny, None, ["train.tokens=384"])
    artifacts = run_pipeline(loaded.recipe, loaded.machine, root / "runs" / "tiny", RunOptions(last="train"))
    assert artifacts["ingest"].counts["sources"]["code"]["documents"] == made.counts["documents"] == 60
    assert artifacts["train"].counts["steps"] == 2
    assert all(line.balances for line in account(root / "runs" / "tiny"))
