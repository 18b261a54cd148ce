"""The spool: texts on the disk come back as they went."""

from __future__ import annotations

from pathlib import Path

from tunewright.spool import Spool

TEXTS = ["one", None, "", "电影 🎬", "शुक्रिया", None, "لام"]


def test_texts_come_back_one_by_one_and_as_arrays(tmp_path: Path) -> None:
    with Spool(tmp_path / "new", len(TEXTS)) as spool:
        for start in range(0, len(TEXTS), 3):
            spool.append(TEXTS[start : start + 3])
        assert [spool.text(row) for row in (3, 0, 1, 6)] == ["电影 🎬", "one", "", "لام"]
        for start in range(len(TEXTS)):
            for stop in range(start, len(TEXTS) + 1):
                array = spool.array(start, stop)
                array.validate(full=True)
                assert array.to_pylist() == TEXTS[start:stop]
        assert not list((tmp_path / "new").iterdir())  # the file has no name


def test_no_text(tmp_path: Path) -> None:
    with Spool(tmp_path, 0) as spool:
        spool.append([])
        assert spool.array(0, 0).to_pylist() == []
