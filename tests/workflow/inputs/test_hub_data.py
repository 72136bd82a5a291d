import pytest

from deepen.errors import SourceError
from deepen.workflow.inputs.hub import pattern_in_card, read_card

CARD = """---
license: mit
configs:
- config_name: sample
  default: true
  data_files:
  - split: train
    path: sample/train-*.parquet
  - split: test
    path: [sample/test-a.parquet, sample/test-b.parquet]
- config_name: full
  data_files: "full/*.parquet"
---
# A data set
"""


def card(tmp_path, text=CARD):
    (tmp_path / "README.md").write_text(text)
    return read_card(tmp_path / "README.md")


@pytest.mark.parametrize(("subset", "pattern"), [(None, "sample/train-*.parquet"), ("full", "full/*.parquet")])
def test_the_card_says_which_files_a_split_is(tmp_path, subset, pattern):
    assert pattern_in_card("lab/data", card(tmp_path), subset, "train") == pattern


@pytest.mark.parametrize(
    ("subset", "split", "message"),
    [("none", "train", "no subset `none`"), ("full", "test", "no split `test`"), (None, "test", "several patterns")],
)
def test_what_the_card_does_not_have_is_an_error_that_lists_what_it_has(tmp_path, subset, split, message):
    with pytest.raises(SourceError, match=message) as caught:
        pattern_in_card("lab/data", card(tmp_path), subset, split)
    assert caught.value.hint


@pytest.mark.parametrize("text", ["no card at all", "---\n: [broken\n---\n", "---\nlicense: mit\n---\n"])
def test_without_a_list_the_card_says_nothing(tmp_path, text):
    assert pattern_in_card("lab/data", card(tmp_path, text), None, "train") is None
