"""What datatrove decides about texts, rule by rule: run by ``benchmarks/curate.py`` in an interpreter that has it.

Reads JSON lines ``{"text": ...}`` from standard input; writes for each one the words that datatrove splits it into, for
every rule whether the document passes when that rule is alone, and what C4 leaves of its text.
"""

from __future__ import annotations

import sys

sys.path.append(sys.path.pop(0))  # the standard library first: this folder has a `tokenize.py` too

import importlib
import json
from typing import Any

FILTERS = "datatrove.pipeline.filters"
GOPHER_QUALITY: dict[str, dict[str, Any]] = {
    "too_few_words": {"min_doc_words": 50},
    "too_many_words": {"max_doc_words": 100000},
    "words_too_short": {"min_avg_word_length": 3},
    "words_too_long": {"max_avg_word_length": 10},
    "symbols": {"max_symbol_word_ratio": 0.1},
    "bullet_lines": {"max_bullet_lines_ratio": 0.9},
    "ellipsis_lines": {"max_ellipsis_lines_ratio": 0.3},
    "words_without_letter": {"max_non_alpha_words_ratio": 0.8},
    "few_stop_words": {"min_stop_words": 2},
}
_NO_QUALITY: dict[str, Any] = {
    "min_doc_words": None, "max_doc_words": None, "min_avg_word_length": None, "max_avg_word_length": None,
    "max_symbol_word_ratio": None, "max_bullet_lines_ratio": None, "max_ellipsis_lines_ratio": None,
    "max_non_alpha_words_ratio": None, "min_stop_words": None,
}  # fmt: skip
_NO_REPETITION: dict[str, Any] = {
    "dup_line_frac": None, "dup_para_frac": None, "dup_line_char_frac": None, "dup_para_char_frac": None,
    "top_n_grams": (), "dup_n_grams": (),
}  # fmt: skip
GOPHER_REPETITION: dict[str, dict[str, Any]] = {
    "duplicate_lines": {"dup_line_frac": 0.3},
    "duplicate_line_characters": {"dup_line_char_frac": 0.2},
    "duplicate_paragraphs": {"dup_para_frac": 0.3},
    "duplicate_paragraph_characters": {"dup_para_char_frac": 0.2},
    **{f"top_{n}_gram_characters": {"top_n_grams": ((n, share),)} for n, share in ((2, 0.2), (3, 0.18), (4, 0.16))},
    **{
        f"duplicate_{n}_gram_characters": {"dup_n_grams": ((n, share),)}
        for n, share in ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10))
    },
}
_NO_FINEWEB: dict[str, Any] = {
    "line_punct_thr": 0.0,
    "short_line_thr": 1.0,
    "char_duplicates_ratio": 1.0,
    "new_line_ratio": 1e9,
}
FINEWEB: dict[str, dict[str, Any]] = {
    "few_terminal_lines": {"line_punct_thr": 0.12},
    "short_lines": {"short_line_thr": 0.67},
    "duplicate_line_characters": {"char_duplicates_ratio": 0.01},
    "newlines": {"new_line_ratio": 0.3},
}


def main() -> None:
    """Decide about every line of standard input."""
    text_module = importlib.import_module("datatrove.utils.text")
    document_class = importlib.import_module("datatrove.data").Document
    modules = {
        name: importlib.import_module(f"{FILTERS}.{name}_filter") for name in ("gopher_quality", "fineweb_quality")
    }
    modules["gopher_repetition"] = importlib.import_module(f"{FILTERS}.gopher_repetition_filter")
    c4 = importlib.import_module(f"{FILTERS}.c4_filters").C4QualityFilter
    current: list[str] = []
    for module in modules.values():  # the words are the same for every rule
        vars(module)["split_into_words"] = lambda text, language: current
    filters: dict[str, dict[str, Any]] = {
        "gopher_quality": {
            rule: modules["gopher_quality"].GopherQualityFilter(**(_NO_QUALITY | only))
            for rule, only in GOPHER_QUALITY.items()
        },
        "gopher_repetition": {
            rule: modules["gopher_repetition"].GopherRepetitionFilter(**(_NO_REPETITION | only))
            for rule, only in GOPHER_REPETITION.items()
        },
        "fineweb": {
            rule: modules["fineweb_quality"].FineWebQualityFilter(**(_NO_FINEWEB | only))
            for rule, only in FINEWEB.items()
        },
        "c4": {"c4": c4(), "c4_without_terminal_punctuation": c4(filter_no_terminal_punct=False)},
    }
    for line in sys.stdin:
        text = json.loads(line)["text"]
        current = text_module.split_into_words(text)
        answer: dict[str, Any] = {"words": current}
        for step, rules in filters.items():
            answer[step] = {}
            for rule, one in rules.items():
                document = document_class(text=text, id="0")
                result = one.filter(document) if current else False
                answer[step][rule] = result is True
                if step == "c4":
                    answer[f"{rule}.text"] = document.text
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
