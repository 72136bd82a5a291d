"""What planted material says of the judgement of curation steps: boilerplate lines, languages, test items."""

from __future__ import annotations

import gzip
import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
from curate_corpora import DATA, PROBES, PROSE, document, texts_of, verdict

from deepen.curate.contamination.decontaminate import Decontaminate
from deepen.curate.contamination.kernel import word_hashes
from deepen.curate.rules.boilerplate_lines import BoilerplateLines
from deepen.curate.rules.language import Language
from deepen.curate.rules.normalize import normalized
from deepen.curate.step import Drop
from deepen.formats.documents.documents import Document

MOST_FALSE = 0.001


def decontamination() -> None:
    """Items planted verbatim, recased, re-punctuated and paraphrased; and what is found where nothing was planted."""
    files = [path for name in PROBES for path in sorted((DATA / f"eval_{name}").glob("*.jsonl*"))]
    step = Decontaminate(against=tuple(map(str, files)))
    generator = random.Random(1)
    items = []
    for path in files:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as lines:
            items += [max(_strings(json.loads(line)), key=lambda text: len(word_hashes(text))) for line in lines]
    chosen = [item for item in generator.sample(items, 1500) if len(word_hashes(item)) >= step.phrase_words]
    short = sum(len(word_hashes(item)) < step.phrase_words for item in items)
    print(f"decontamination against {len(items)} items; {short} have no text of {step.phrase_words} words")
    hosts = [text for name in ("gov_web_prose", "gutenberg_and_speeches") for text in texts_of(name)]
    hosts += [
        text[start : start + 5000] for text in texts_of("english_novels") for start in range(0, len(text), 50_000)
    ]
    clean = [host for host in hosts if not isinstance(step.apply(document(host)), Drop)]
    known = {gram for item in items for gram in _tuples(item, 8)}
    false = 0
    for host in hosts:
        result = step.apply(document(host))
        if isinstance(result, Drop):
            shared = " ".join(min(known & set(_tuples(host, 8)), default=()))
            false += not shared
            print(f"  nothing planted: {result.reason} {result.detail[:70]} ... shares: {shared}")
    verdict(f"false in {false} of {len(hosts)} documents, < 0.1 %", false < MOST_FALSE * len(hosts))
    for name, change in (
        ("verbatim", str),
        ("recased", _recased),
        ("re-punctuated", _punctuated),
        ("paraphrased", _paraphrased),
    ):
        found = 0
        for number, item in enumerate(chosen):
            host = clean[number % len(clean)][:4000]
            found += isinstance(step.apply(document(f"{host[:2000]} {change(item)} {host[2000:]}")), Drop)
        print(f"  {name:14} {found} of {len(chosen)} found ({found / len(chosen):.1%})")
        if name != "paraphrased":
            verdict(f"{name} recall 100 %", found == len(chosen))


def _tuples(text: str, n: int) -> Iterator[tuple[str, ...]]:
    words = re.findall(r"[^\W_]+", re.sub(r"['’]", "", text.lower()))
    return zip(*(words[start:] for start in range(n)), strict=False)


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    return [text for item in inner for text in _strings(item)] or [""]


def _recased(text: str) -> str:
    return "".join(letter.upper() if number % 2 else letter.lower() for number, letter in enumerate(text))


def _punctuated(text: str) -> str:
    text = re.sub(r"(?<=\w)['’](?=\w)", "’", text)
    return re.sub(r"[^\w\s'’]+", " ; ", text).replace(" ", " -- ", 3)


def _paraphrased(text: str) -> str:
    """Every fifth word another one, and halves swapped."""
    words = [word if number % 5 else "thing" for number, word in enumerate(text.split())]
    return " ".join(words[len(words) // 2 :] + words[: len(words) // 2])


def planted() -> None:
    """Precision and recall of boilerplate lines and headings planted among real texts, and of languages."""
    generator = random.Random(1)
    menu = ["Home | About us | Contact", "Sign in", "Skip to main content", "Search this site", "Menu"]
    footer = ["© 2024 Example Ltd. All rights reserved.", "Privacy | Terms | Sitemap", "Share", "Back to top"]
    notice = "Subscribe to our newsletter to get the latest updates by mail every week."
    headings, unwanted, pages = ["Methods", "Results", "Discussion"], {*menu, *footer, notice}, []
    hosts = [
        normalized(text).split("\n")
        for text in texts_of("medical_trials_fulltext", 400) + texts_of("web_mix_small", 400)
    ]
    common = Counter(line for host in hosts for line in {" ".join(line.split()) for line in host})
    for host in hosts:  # lines that recur by nature are taken out, for nobody has said which of them are boilerplate
        lines = [line for line in host if line.strip() and common[" ".join(line.split())] == 1]
        if len(lines) < 9:
            continue
        for number, line in enumerate((*headings, notice)):
            lines.insert((number + 1) * len(lines) // 5, line)
        head, tail = (
            generator.sample(menu, generator.randrange(1, 6)),
            generator.sample(footer, generator.randrange(1, 5)),
        )
        pages.append("\n".join([*head, "", *lines, "", *tail]))
    step = BoilerplateLines()
    keys, counts = np.unique(np.concatenate([step.keys(document(page)) for page in pages]), return_counts=True)
    found = keys[counts >= step.fewest_documents(len(pages))]
    removed: Counter[bool] = Counter()
    missed = 0
    for page in pages:
        result = step.apply_found(document(page), found)
        assert isinstance(result, Document)
        left = Counter(result.text.split("\n"))
        missed += sum(number for line, number in left.items() if line in unwanted)
        for line, number in (Counter(page.split("\n")) - left).items():
            removed[line in unwanted] += number if line.strip() else 0
    recall, precision = removed[True] / (removed[True] + missed), removed[True] / removed.total()
    print(f"boilerplate_lines: recall {recall:.4f}, precision {precision:.4f} ({removed[False]} headings and others)")
    verdict("boilerplate_lines: recall and precision >= 0.99", min(recall, precision) >= 0.99)
    languages()


def languages() -> None:
    """Paragraphs of known language."""
    step, right, told, number = Language(), 0, 0, 0
    corpora = {
        "en": PROSE[:4],
        "zh": ("chinese_db_docs", "chinese_wiki_sentences"),
        "hi": ("hindi_classics", "hindi_modern_small"),
    }
    for code, names in corpora.items():
        texts = [text[:600] for name in names for text in texts_of(name, 300) if len(text) > 60]
        results = [step.apply(document(text)) for text in texts]
        found = Counter(result.language for result in results if isinstance(result, Document))
        print(f"language {code}: {len(texts)} texts, {found.most_common(4)}")
        right, told, number = right + found[code], told + len(texts) - found[None], number + len(texts)
    verdict(f"language: precision {right / told:.4f} >= 0.98, recall {right / number:.4f} >= 0.95",
            right / told >= 0.98 and right / number >= 0.95)  # fmt: skip
