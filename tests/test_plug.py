from typing import Annotated, Literal

import pytest
from pydantic import ValidationError

from deepen.plug import Plug, field_at, field_names, identity, plug_from, settings_at
from deepen.recipe.explain import meaning_of
from deepen.settings import Many, Settings


class Short(Plug):
    """Drops short texts."""

    use: Literal["short"] = "short"
    least: int = 10
    """Characters at least."""


class Long(Plug):
    use: Literal["long"] = "long"
    most: int


TABLE: dict[str, type[Plug]] = {"short": Short, "long": Long}


class Holder(Settings):
    steps: Many[Annotated[Plug, plug_from(TABLE)]] = (Short(),)
    one: Annotated[Plug, plug_from(TABLE)] = Short()


class Mine(Plug):
    use: str = "tests.test_plug:Mine"
    size: int = 3


def test_a_plug_is_given_by_name_or_by_mapping():
    holder = Holder.model_validate({"steps": ["short", {"use": "long", "most": 5}]})
    assert holder.steps == (Short(), Long(most=5))


def test_an_unknown_name_is_refused_with_a_suggestion():
    with pytest.raises(ValidationError, match="did you mean `short`"):
        Holder.model_validate({"one": "shrot"})


def test_errors_inside_a_plug_name_the_field():
    with pytest.raises(ValidationError) as caught:
        Holder.model_validate({"steps": [{"use": "short", "least": "x"}]})
    assert caught.value.errors()[0]["loc"][-1] == "least"


def test_third_party_plugs_are_imported_and_their_source_is_part_of_the_identity():
    holder = Holder.model_validate({"one": {"use": f"{__name__}:Mine", "size": 9}})
    assert holder.one.size == 9  # type: ignore[attr-defined]
    assert "source" in identity(holder)["one"]


@pytest.mark.parametrize("name", ["no.such.module:Thing", "os:path", f"{__name__}:Missing"])
def test_third_party_plugs_that_cannot_be_loaded_are_refused(name):
    with pytest.raises(ValidationError):
        Holder.model_validate({"one": {"use": name}})


def test_identity_holds_only_what_differs_from_defaults():
    assert identity(Holder()) == {}
    assert identity(Holder(one=Short(least=11))) == {"one": {"use": "short", "version": 1, "least": 11}}


def test_plugs_are_written_whole():
    assert Holder().model_dump(mode="json") == {
        "steps": [{"use": "short", "least": 10}],
        "one": {"use": "short", "least": 10},
    }


def test_keys_can_be_looked_up_through_plugs():
    assert field_names(Holder, ("steps", 0)) == ["use", "least", "most"]
    assert meaning_of(*field_at(Holder, ("one", "least"))) == "Characters at least."  # type: ignore[misc]
    assert settings_at(Holder, ()) == [Holder]
