"""Files and folders are there whole or not at all."""

from pathlib import Path

import pytest

from pyterrier_kd.atomic import atomic_file, atomic_folder, recover


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    for content in ("one", "two"):
        with atomic_folder(tmp_path / "x") as folder:
            (folder / content).write_text(content)
    assert [p.name for p in (tmp_path / "x").iterdir()] == ["two"]
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "x") as folder:
        (folder / "three").write_text("")
        raise RuntimeError
    assert [p.name for p in (tmp_path / "x").iterdir()] == ["two"]
    assert [p.name for p in tmp_path.iterdir() if p.name != "pyterrier"] == ["x"]
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="could not write"), atomic_folder(tmp_path / "file" / "y"):
        pass


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "x") as folder:
        (folder / "good").write_text("")
    (tmp_path / "x").rename(tmp_path / ".x.0123abcd.old")
    recover(tmp_path / "x")
    assert [p.name for p in (tmp_path / "x").iterdir()] == ["good"]
    recover(tmp_path / "x")
    recover(tmp_path / "nothing")
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "pyterrier") == ["x"]


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "a" / "x"
    for content in ("one", "two"):
        with atomic_file(path) as fresh:
            assert not path.exists() or path.read_text() == "one"
            fresh.write_text(content)
    with pytest.raises(RuntimeError), atomic_file(path) as fresh:
        fresh.write_text("three")
        raise RuntimeError
    assert [(p.name, p.read_text()) for p in path.parent.iterdir()] == [("x", "two")]
