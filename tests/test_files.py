"""Files that appear whole or not at all."""

import os

import pytest

from effv2_jax.files import AtomicFile, write_atomically


@pytest.mark.parametrize("mask", [0o022, 0o027])
def test_a_file_has_the_mode_of_any_new_file(tmp_path, mask, monkeypatch):
    previous = os.umask(mask)
    try:
        monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("other threads would create files with this mask"))
        write_atomically(tmp_path / "plain", b"x")
        with AtomicFile(tmp_path / "replaced") as part:
            part.unlink()
            os.close(os.open(part, os.O_CREAT | os.O_WRONLY, 0o600))  # as some libraries write
    finally:
        monkeypatch.undo()
        os.umask(previous)
    assert {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == dict.fromkeys(
        ("plain", "replaced"), 0o666 & ~mask
    )


def test_after_an_exception_nothing_has_changed(tmp_path):
    (tmp_path / "file").write_text("old")
    with pytest.raises(ZeroDivisionError), AtomicFile(tmp_path / "file") as part:
        part.write_text("new")
        1 / 0  # noqa: B018
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]
