"""Probes that let the model choose: by the likelihood of each choice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from deepen.errors import Problem
from deepen.evaluate.probes.item_probe import FileProbe
from deepen.settings import Many

if TYPE_CHECKING:
    from deepen.evaluate.documents.material import Material
    from deepen.evaluate.items.files import Item
    from deepen.evaluate.probes.probe import Measure


class MultipleChoice(FileProbe):
    """The share of questions whose right answer is the likeliest of the choices, given the question."""

    use: Literal["multiple_choice"] = "multiple_choice"
    choices: str | Many[str] = "choices"
    """Field with the list of choices, or a list of fields with one choice each."""
    options: Many[str] = ()
    """Choices that are the same for every item, such as `[yes, no, maybe]`, instead of `choices`."""
    separator: str = " "
    """Stands between prompt and choice."""
    normalise: Literal["none", "bytes", "characters", "tokens"] = "bytes"
    """What the log-likelihood of a choice is divided by, so that short choices have no advantage. `none` is the
    `acc` of the lm-evaluation-harness, `characters` its `acc_norm`, `bytes` its `acc_bytes`. Bytes, our choice: they
    do not depend on the tokenizer (and are the characters, in English)."""

    @property
    def between(self) -> str:
        """What stands between a prompt and its answer."""
        return self.separator

    def problems(self, path: str) -> list[Problem]:
        """As for every file of items, and choices that leave nothing to choose."""
        return [*super().problems(path), *_choice_problems(path, self.choices, self.options)]

    def parse(self, row: dict[str, Any]) -> Item:
        """A row as a question with choices."""
        from deepen.evaluate.items.files import Item, choices_of, field_of, fill, gold_of

        choices = choices_of(row, self.choices, self.options)
        gold = gold_of(field_of(row, self.answer), choices)
        return Item("", "", "", prompt=fill(self.prompt, row), choices=choices, gold=gold)

    def prepare(self, material: Material) -> Measure:
        """Encode every choice behind its question; see ``Probe.prepare``."""
        from deepen.evaluate.items.choosing import Choosing, prepare_choices

        return prepare_choices(self.items(), Choosing(self.normalise, self.separator), material)


class Cloze(FileProbe):
    """The share of sentences whose blank is filled best by the right choice, the text behind the blank included."""

    use: Literal["cloze"] = "cloze"
    prompt: str = "{text}"
    """The sentence with its blank: text with fields of the item in braces."""
    blank: str = "_"
    """The mark of the blank in the filled-in prompt; it must be there exactly once."""
    choices: str | Many[str] = "choices"
    """Field with the list of choices, or a list of fields with one choice each."""
    scored: Literal["filled", "rest"] = "filled"
    """What is scored: the choice with the text behind it, or only the text behind it (Trinh & Le 2018, arXiv
    1806.02847), which takes away the choice's own likelihood."""
    normalise: Literal["none", "bytes", "characters", "tokens"] = "none"
    """What the log-likelihood is divided by: the length of the choice (bytes, characters) or of all that is scored
    (tokens)."""

    @property
    def between(self) -> str:
        """What stands between a prompt and its answer."""
        return ""

    def parse(self, row: dict[str, Any]) -> Item:
        """A row as a sentence cut at its blank."""
        from deepen.evaluate.items.files import EMPTY, BadRowError, Item, choices_of, field_of, fill, gold_of

        parts = fill(self.prompt, row).split(self.blank)
        if len(parts) != 2:
            raise BadRowError("not_one_blank")
        if self.scored == "rest" and not parts[1].strip():
            raise BadRowError(EMPTY)
        choices = choices_of(row, self.choices, ())
        gold = gold_of(field_of(row, self.answer), choices)
        return Item("", "", "", prompt=parts[0], choices=choices, gold=gold, rest=parts[1])

    def prepare(self, material: Material) -> Measure:
        """Encode the sentence with every choice in its blank; see ``Probe.prepare``."""
        from deepen.evaluate.items.choosing import Choosing, prepare_choices

        return prepare_choices(self.items(), Choosing(self.normalise, "", self.scored == "rest"), material)

    def problems(self, path: str) -> list[Problem]:
        """As for every file of items, and a mark that is none."""
        found = super().problems(path)
        if not self.blank:
            found.append(Problem(f"{path}.blank", "is empty", "set it to the mark that stands for the blank"))
        return [*found, *_choice_problems(path, self.choices, ())]


def _choice_problems(path: str, choices: str | tuple[str, ...], options: tuple[str, ...]) -> list[Problem]:
    """Lists of choices with fewer than two: whoever has one choice is always right."""
    found = []
    lists = {"options": options or None, "choices": None if isinstance(choices, str) or options else choices}
    for key, given in lists.items():
        if given is not None and (len(set(given)) < 2 or not all(text.strip() for text in given)):
            message = "must be two different texts at least"
            found.append(Problem(f"{path}.{key}", message, "list every choice", ", ".join(given)))
    return found
