"""What a vocabulary may be, and what is refused before anything runs."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from deepen.formats.files.yaml_text import YamlText
from deepen.model.config import RandomInit
from deepen.recipe.checks import Sections, check
from deepen.tokenize.config import ExtendVocabulary, TokenizeConfig, TrainVocabulary, problems


def config(**vocabulary) -> TokenizeConfig:
    return TokenizeConfig.model_validate({"vocabulary": vocabulary})


def paths(config: TokenizeConfig) -> list[str]:
    return [problem.path.removeprefix("tokenize.vocabulary.") for problem in problems(config)]


def test_the_three_kinds() -> None:
    assert TokenizeConfig().vocabulary == "keep"
    assert config(train=300).vocabulary == TrainVocabulary(train=300)
    assert config(extend="2k tokens").vocabulary == ExtendVocabulary(extend=2000)
    assert config(extend="auto").vocabulary.init == "subword_mean"


@pytest.mark.parametrize(("key", "value"), [("extend", "many"), ("extend", -1), ("init", "zero"), ("train", 12)])
def test_a_wrong_value_is_told_of_its_key(key: str, value) -> None:
    with pytest.raises(ValidationError) as caught:
        config(**({"extend": 5} if key == "init" else {}), **{key: value})
    assert key in {part for error in caught.value.errors() for part in error["loc"]}
    assert len({error["loc"][2] for error in caught.value.errors()}) == 1  # no other kind complains


def test_all_problems_at_once(tmp_path: Path) -> None:
    assert paths(config(extend=0, init="random")) == ["extend", "init"]
    assert paths(config(extend=0, words=str(tmp_path / "none"))) == ["words"]
    (tmp_path / "words").write_text("a\n")
    assert paths(config(extend=0, words=str(tmp_path / "words"), init="random", allow_random=True)) == []


def test_a_random_base_has_nothing_to_extend() -> None:
    base = RandomInit(init="random", hidden_size=16, layers=1, heads=2)
    sections = Sections(base, (), None, config(extend="auto"), None, None, None)
    found = check(sections, YamlText())
    assert [problem.path for problem in found] == ["tokenize.vocabulary"]
