"""Files made by hand for the tests: small pdf files, some of them hostile."""


def _pdf(objects):
    out, offsets = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, start=1):
        offsets.append(len(out))
        out += f"{number} 0 obj\n{body}\nendobj\n".encode()
    entries = "".join(f"{offset:010d} 00000 n \n" for offset in offsets)
    size = len(objects) + 1
    table = f"xref\n0 {size}\n0000000000 65535 f \n{entries}trailer\n<< /Size {size} /Root 1 0 R >>\n"
    return out + f"{table}startxref\n{len(out)}\n%%EOF\n".encode()


def _stream(content, entries=""):
    return f"<< {entries} /Length {len(content)} >>\nstream\n{content}\nendstream"


def pdf_of(pages):
    """A born-digital pdf: each page is a list of lines of ASCII text."""
    kids = " ".join(f"{4 + 2 * number} 0 R" for number in range(len(pages)))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for number, lines in enumerate(pages):
        resources = "<< /Font << /F 3 0 R >> >>"
        page = f"/Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Resources {resources}"
        escaped = [line.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)") for line in lines]
        text = " ".join(f"({line}) Tj 0 -14 Td" for line in escaped)
        objects += [f"<< {page} /Contents {5 + 2 * number} 0 R >>", _stream(f"BT /F 11 Tf 40 800 Td {text} ET")]
    return _pdf(objects)


def hanging_pdf(depth=9):
    """A pdf of 3 kB whose forms each draw the next one eight times: 8 to the power of ``depth`` words."""
    font = "/Font << /F 5 0 R >>"
    page = f"/Resources << {font} /XObject << /X 6 0 R >> >> /MediaBox [0 0 595 842] /Contents 4 0 R"
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        "<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        f"<< /Type /Page /Parent 2 0 R {page} >>",
        _stream("/X Do"),
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for level in range(depth):
        is_last = level == depth - 1
        inner = "" if is_last else f"/XObject << /X {level + 7} 0 R >>"
        entries = f"/Type /XObject /Subtype /Form /BBox [0 0 595 842] /Resources << {font} {inner} >>"
        objects.append(_stream("BT /F 9 Tf 9 9 Td (hi) Tj ET" if is_last else "/X Do " * 8, entries))
    return _pdf(objects)
