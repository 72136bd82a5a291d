import subprocess
import sys


def test_stages_and_formats_load_neither_torch_nor_transformers() -> None:
    rooms = "deepen.tokenize.config, deepen.tokenize.stage, deepen.tokenize.parts, deepen.mix.config, deepen.mix.stage"
    formats = "deepen.formats.megatron, deepen.formats.packs, deepen.formats.order, deepen.formats.document_ids"
    check = "assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", f"import sys, {rooms}, {formats}; {check}"], check=True)
