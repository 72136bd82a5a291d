"""People who do not exist: text that teaches facts about them, and questions that show whether they were learnt.

After Allen-Zhu and Li, "Physics of Language Models: Part 3.1" (arXiv 2309.14316): every person has six attributes; the
text of all people is trained, questions about one half too, and the other half is asked. With one wording per person a
model learns to repeat the text and can hardly answer; several wordings are what makes facts retrievable. The sentences
and names are our own. Everything follows from the seed.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from deepen.formats.files.atomic import FileEntry
from deepen.formats.files.records import write_records

_FIRST = "Ada Bruno Clara Dario Edda Felix Greta Hanno Ilse Jonas Karla Linus Mara Nils Olga Pavel Rosa Silas Tilda"
_MIDDLE = "Amber Birch Cedar Dawn Ember Flint Grove Haven Iris June Lark Moss North Onyx Pearl Quill Reed Sage Thorn"
_LAST = "Abel Brandt Castel Dorn Engel Falk Gruber Holm Ibsen Jansen Keller Lund Moser Nyman Orban Pohl Quist Ritter"
_CITIES = "Alden Birkfeld Corvo Dunmere Elsin Farrow Galden Hollin Istra Jorvik Kestrel Lomond Marrow Nordal Ostia"
_SCHOOLS = "Aster Beacon Crown Delphi Ember Forum Gate Harbor"
_SUBJECTS = "astronomy botany chemistry drawing economics forestry geology history law music physics statistics"
_FIRMS = "Acorn Bluestone Cobalt Driftwood Everline Foxglove Granite Hearth Inkwell Juniper Kingfisher Lantern"
_MONTHS = "January February March April May June July August September October November December"

_WORDINGS: dict[str, tuple[str, ...]] = {
    "birthday": (
        "{name} was born on {value}.", "The birthday of {name} is {value}.", "{value} is the day {name} was born.",
        "{name} celebrates every year on {value}.", "On {value}, {name} came into the world.",
    ),
    "birthplace": (
        "{name} was born in {value}.", "The birthplace of {name} is {value}.", "{value} is where {name} was born.",
        "{name} spent the first years in {value}.", "In {value}, {name} grew up.",
    ),
    "school": (
        "{name} studied at {value}.", "The school of {name} was {value}.", "{value} is where {name} studied.",
        "{name} took a degree at {value}.", "At {value}, {name} learned a trade.",
    ),
    "subject": (
        "{name} studied {value}.", "The subject of {name} was {value}.", "{value} is what {name} studied.",
        "{name} chose to read {value}.", "In {value}, {name} took a degree.",
    ),
    "employer": (
        "{name} works for {value}.", "The employer of {name} is {value}.", "{value} is where {name} has a job.",
        "{name} earns a living at {value}.", "At {value}, {name} has an office.",
    ),
    "workplace": (
        "{name} works in {value}.", "The workplace of {name} is in {value}.", "{value} is the city {name} works in.",
        "{name} goes to work in {value}.", "In {value}, {name} has a desk.",
    ),
}  # fmt: skip
_QUESTIONS = {
    "birthday": "On which day was {name} born?",
    "birthplace": "In which city was {name} born?",
    "school": "At which school did {name} study?",
    "subject": "What did {name} study?",
    "employer": "For whom does {name} work?",
    "workplace": "In which city does {name} work?",
}


@dataclass(frozen=True)
class Person:
    """Somebody with a value of every attribute."""

    name: str
    facts: dict[str, str]


def people(count: int, seed: int) -> list[Person]:
    """So many people with different names; raises ``ValueError`` when there are not so many names."""
    draw = random.Random(seed)
    names = [f"{a} {b} {c}" for a in _FIRST.split() for b in _MIDDLE.split() for c in _LAST.split()]
    if count > len(names):
        raise ValueError(f"there are {len(names)} names")
    return [Person(name, _facts(draw)) for name in draw.sample(names, count)]


def _facts(draw: random.Random) -> dict[str, str]:
    return {
        "birthday": f"{draw.randint(1, 28)} {draw.choice(_MONTHS.split())} {draw.randint(1920, 2004)}",
        "birthplace": draw.choice(_CITIES.split()),
        "school": f"{draw.choice(_SCHOOLS.split())} College",
        "subject": draw.choice(_SUBJECTS.split()),
        "employer": f"{draw.choice(_FIRMS.split())} Works",
        "workplace": draw.choice(_CITIES.split()),
    }


def write_biographies(folder: Path, *, num_people: int, rewrites: int, seed: int) -> list[FileEntry]:
    """Write the files of the probe into ``folder``:

    ``biographies.jsonl`` (``rewrites`` texts about each person) and ``questions.jsonl`` (about the first half of the
    people, as text) are to be trained; ``facts.jsonl`` asks about the second half, ``reversed.jsonl`` for their names.
    """
    everyone = people(num_people, seed)
    told, asked = everyone[: num_people // 2], everyone[num_people // 2 :]
    draw = random.Random(f"{seed} texts")
    texts = [{"text": biography(one, draw)} for one in everyone for _ in range(rewrites)]
    draw.shuffle(texts)
    questions = [{"text": f"{row['prompt']} {row['completion']}"} for one in told for row in questions_about(one)]
    rows = {
        "biographies.jsonl": texts,
        "questions.jsonl": questions,
        "facts.jsonl": [row for one in asked for row in questions_about(one)],
        "reversed.jsonl": [_reversed(one) for one in asked],
    }
    return [write_records(folder / name, found, folder) for name, found in rows.items()]


def biography(person: Person, draw: random.Random) -> str:
    """One text with all facts, in an order and wording of its own."""
    attributes = draw.sample(sorted(person.facts), len(person.facts))
    sentences = (draw.choice(_WORDINGS[one]).format(name=person.name, value=person.facts[one]) for one in attributes)
    return " ".join(sentence[0].upper() + sentence[1:] for sentence in sentences)


def questions_about(person: Person) -> Iterator[dict[str, str]]:
    """One item per attribute, clustered by person."""
    for attribute, value in sorted(person.facts.items()):
        yield {
            "id": f"{person.name}: {attribute}",
            "person": person.name,
            "attribute": attribute,
            "prompt": f"Q: {_QUESTIONS[attribute].format(name=person.name)}\nA:",
            "completion": value,
        }


def _reversed(person: Person) -> dict[str, str]:
    """The other direction, which models do not learn by themselves: from the facts to the name."""
    day, place, firm = (person.facts[one] for one in ("birthday", "birthplace", "employer"))
    prompt = f"Q: Who was born on {day} in {place} and works for {firm}?\nA:"
    return {"id": person.name, "person": person.name, "attribute": "name", "prompt": prompt, "completion": person.name}
