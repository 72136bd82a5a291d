"""A run with an extended vocabulary: its words identify it, and what was found is shown."""

from itertools import islice
from pathlib import Path

from deepen.board.report import _vocabulary_section
from deepen.curate.config import CurateConfig
from deepen.formats.files.atomic import FileEntry, write_json
from deepen.formats.input_files import identify_files
from deepen.formats.manifest import Artifact, CodeVersion, Manifest, write_manifest
from deepen.mix.config import MixConfig
from deepen.recipe.models import Recipe
from deepen.runs.show.artifact import ShowOptions, show
from deepen.tokenize.config import ExtendVocabulary, TokenizeConfig
from deepen.workflow.inputs.find import files_of

REPORT = {
    "verdict": "extend by 500",
    "reason": "it costs 4 tokens per word",
    "extension": {"new_tokens": 500},
    "sources": [
        {
            "source": "hindi", "language": None, "unit": "word", "fertility": 4.0, "bytes_per_token": 2.5,
            "continued_share": 0.9, "byte_share": 0.5, "premium": 2.8,
        }
    ],
}  # fmt: skip


def tokenized(folder: Path) -> Artifact:
    files: tuple[FileEntry, ...] = (write_json(folder / "report.json", REPORT),)
    manifest = Manifest(
        stage="tokenize", format=1, fingerprint="f", config={}, inputs={}, files=files, counts={"sources": {}},
        code=CodeVersion(version="0"), started="", finished="",
    )  # fmt: skip
    write_manifest(folder, manifest)
    return Artifact(folder, manifest)


def test_the_words_that_are_given_identify_the_run(tmp_path: Path) -> None:
    file = tmp_path / "words"
    found = []
    for text in ("aspirin\n", "heparin\n"):
        file.write_text(text)
        vocabulary = ExtendVocabulary(extend=0, words=str(file))
        parts = {"curate": CurateConfig(), "tokenize": TokenizeConfig(vocabulary=vocabulary), "mix": MixConfig()}
        files = files_of(Recipe.model_construct(**parts))
        found.append(identify_files(files, tmp_path / "hashes.json"))
    assert set(found[0]) == {"tokenize:words"}
    assert found[0] != found[1]


def test_show_tells_the_vocabulary_report(tmp_path: Path) -> None:
    tokenized(tmp_path)
    records = list(islice(show(tmp_path, ShowOptions()), 2))
    assert {"vocabulary_report": REPORT} in records


def test_the_html_report_has_the_verdict(tmp_path: Path) -> None:
    section = _vocabulary_section(tokenized(tmp_path))
    assert "extend by 500, because it costs 4 tokens per word. This run added 500 tokens." in section.lead
    assert "hindi" in section.body and "90.0%" in section.body
