import subprocess
import sys


def test_stages_and_formats_load_neither_torch_nor_transformers() -> None:
    rooms = "deepen.tokenize.config, deepen.tokenize.stage, deepen.tokenize.parts, deepen.mix.config, deepen.mix.stage"
    names = ("tokens.megatron", "tokens.packs", "tokens.order", "documents.document_ids")
    formats = ", ".join(f"deepen.formats.{name}" for name in names)
    check = "assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", f"import sys, {rooms}, {formats}; {check}"], check=True)
