"""Files appear whole or not at all."""

from pathlib import Path

import pytest

from twofold.files import replacing, write_text


@pytest.mark.parametrize("name", ["a" * 255, "\N{CJK UNIFIED IDEOGRAPH-96E8}" * 83 + ".png"])  # 255 and 253 bytes
def test_a_name_as_long_as_may_be_can_be_written(name: str, tmp_path: Path) -> None:
    write_text(tmp_path / name, "whole")
    assert (tmp_path / name).read_text() == "whole"


def test_an_error_leaves_the_former_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "former")

    def interrupted() -> None:
        with replacing(path) as temporary:
            temporary.write_text("new")
            raise ValueError("midway")

    with pytest.raises(ValueError, match="midway"):
        interrupted()
    assert path.read_text() == "former"
    assert list(tmp_path.iterdir()) == [path]
