"""Probes that let the model write: greedy answers, compared after normalisation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from deepen.evaluate.probes.item_probe import FileProbe
from deepen.settings import Count, Many

if TYPE_CHECKING:
    from deepen.evaluate.documents.material import Material
    from deepen.evaluate.items.files import Item
    from deepen.evaluate.probes.probe import Measure


class _Answers(FileProbe):
    """Base of probes whose items are a prompt with its accepted answers."""

    def parse(self, row: dict[str, Any]) -> Item:
        """A row as a prompt with its accepted answers."""
        from deepen.evaluate.items.files import EMPTY, BadRowError, Item, answers_of, field_of, fill

        prompt = fill(self.prompt, row)
        if not prompt.strip():
            raise BadRowError(EMPTY)
        return Item("", "", "", prompt=prompt, answers=answers_of(field_of(row, self.answer)))


class ExactAnswer(_Answers):
    """The share of questions that the model answers in words that are, normalised, an accepted answer."""

    use: Literal["exact_answer"] = "exact_answer"
    max_tokens: Annotated[Count, Field(ge=1)] = 32
    """Tokens of an answer at most. Our choice: enough for a name or a number."""
    stop: Many[Annotated[str, Field(min_length=1)]] = ("\n",)
    """An answer ends before the first of these."""
    extract: Literal["all", "first_number", "last_number"] = "all"
    """What of the answer is compared; for arithmetic a number in it, whatever its notation."""

    def prepare(self, material: Material) -> Measure:
        """Encode questions and accepted answers; see ``Probe.prepare``."""
        from deepen.evaluate.items.answering import Answering, prepare_answers

        return prepare_answers(self.items(), Answering(self.max_tokens, self.stop, self.extract), material)


class Facts(_Answers):
    """The share of facts that the model completes by itself, word for word.

    Nothing but the fact must be in the prompt, so that what is measured is what the weights hold (`deepen biographies`
    makes such items with text that teaches them).
    """

    use: Literal["facts"] = "facts"
    prompt: str = "{prompt}"
    """The beginning of a sentence, or a question such as `Q: {question}\\nA:`."""
    answer: str = "completion"
    """Field of the completion, or of a list of accepted ones."""
    max_tokens: Annotated[Count, Field(ge=1)] = 24
    """Tokens of a completion at most. Our choice."""
    stop: Many[Annotated[str, Field(min_length=1)]] = ("\n",)
    """A completion ends before the first of these."""

    def prepare(self, material: Material) -> Measure:
        """Encode prompts and completions; see ``Probe.prepare``."""
        from deepen.evaluate.items.answering import Answering, prepare_answers

        return prepare_answers(self.items(), Answering(self.max_tokens, self.stop, begins_with=True), material)
