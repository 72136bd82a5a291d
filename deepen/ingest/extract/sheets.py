"""Excel files to text: each sheet under its name, a line per row, cells set apart by `` | ``; values, not formulas."""

from __future__ import annotations

import warnings
from datetime import datetime, time
from io import BytesIO
from typing import Any

import openpyxl

from deepen.ingest.extract.result import Extracted, Refused, open_zipped


def extract(data: bytes, options: dict[str, Any]) -> Extracted:
    """The text of a workbook; ``sheets`` in its meta. Empty rows, and empty cells at the end of a row, are left out."""
    open_zipped(data).close()
    warnings.simplefilter("ignore")  # about styles and extensions, which have no text
    try:
        book = openpyxl.load_workbook(BytesIO(data), read_only=True, data_only=True)
    except (KeyError, ValueError, TypeError, SyntaxError) as error:
        raise Refused("corrupt_office", f"{type(error).__name__}: {error}") from error
    sheets = []
    for sheet in book.worksheets:
        sheet.reset_dimensions()  # what the file says about its size is often wrong
        try:
            rows = [line for row in sheet.iter_rows(values_only=True) if (line := _line(row))]
        except SyntaxError as error:  # what every reader of XML raises; sheets are parsed only now
            raise Refused("corrupt_office", f"{sheet.title}: {error}") from error
        if rows:
            sheets.append("\n".join([f"# {sheet.title}", *rows]))
    if not sheets:
        raise Refused("no_text", "no cell of any sheet has a value")
    return Extracted("\n\n".join(sheets), {"sheets": str(len(book.worksheets))})


def _line(row: tuple[Any, ...]) -> str:
    return " | ".join(map(_cell, row)).rstrip(" |")


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, datetime):
        return value.date().isoformat() if value.time() == time() else value.isoformat(" ", "seconds")
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return " ".join(str(value).split())
