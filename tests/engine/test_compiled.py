from pathlib import Path

import numba

import deepen.engine.compiled as compiled


def test_the_cache_is_named_by_the_sources_of_all_kernels(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    assert compiled.cache_directory() == tmp_path / f"kernels-{compiled.kernel_digest()}"
    assert Path(numba.config.CACHE_DIR).name == f"kernels-{compiled.kernel_digest()}"


def test_a_changed_kernel_has_another_cache(tmp_path, monkeypatch):
    package = tmp_path / "deepen"
    for room in ("engine", "curate/kernels"):
        (package / room).mkdir(parents=True)
    (package / "curate" / "kernels" / "text.py").write_text("A = 1")
    monkeypatch.setattr(compiled, "__file__", str(package / "engine" / "compiled.py"))
    before = compiled.kernel_digest()
    (package / "curate" / "kernels" / "text.py").write_text("A = 2")
    assert compiled.kernel_digest() != before


def test_every_file_with_kernels_names_the_cache():
    package = Path(compiled.__file__).resolve().parents[1]
    rooms = {path.relative_to(package).parts[0] for path in package.rglob("*.py") if "njit" in path.read_text()}
    assert rooms - {"engine"} == set(compiled._ROOMS)


def test_without_a_home_that_can_be_written_the_kernels_still_have_a_place(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert compiled.cache_directory().is_dir()
