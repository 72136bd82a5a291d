from pathlib import Path

from deepen.formats.documents.documents import document_files


def test_a_source_is_not_taken_for_another_that_begins_alike(tmp_path: Path) -> None:
    for name in ("notes-00001", "notes-00000", "notes-2023-00000", "notes-100000"):
        (tmp_path / f"{name}.parquet").touch()
    assert [path.stem for path in document_files(tmp_path, "notes")] == ["notes-00000", "notes-00001", "notes-100000"]
    assert len(document_files(tmp_path)) == 4
