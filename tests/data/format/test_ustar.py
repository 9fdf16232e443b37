"""Members are found as tarfile finds them, and what is no plain member of the sample is refused."""

import io
import tarfile

import pytest

from llava_mini.data.format.ustar import parse_members, write_tar
from llava_mini.errors import SampleError

MEMBERS = {"json": b"{}", "000000.jpg": b"x" * 512, "000001.jpg": b"", "scale.npy": b"y" * 513}


def tar_of(*names: str, **fields: object) -> bytes:
    """A tar's stretch with members of these names, without the end of the archive; `fields` change every header."""
    file = io.BytesIO()
    for name in names:
        info = tarfile.TarInfo(name)
        info.size = 3
        for field, value in fields.items():
            setattr(info, field, value)
        file.write(info.tobuf(tarfile.USTAR_FORMAT) + b"abc".ljust(512, b"\0"))
    return file.getvalue()


def test_a_written_sample_is_parsed_and_read_by_tarfile() -> None:
    file = io.BytesIO()
    places = list(write_tar(file, [("a", {"json": b"1"}), ("b", dict(reversed(MEMBERS.items())))]))
    raw = file.getvalue()
    assert places == [("a", 0, 1024), ("b", 1024, 4 * 512 + 512 + 512 + 1024)]
    _, offset, size = places[1]
    assert parse_members(raw[offset : offset + size], "b") == MEMBERS
    with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
        names = [member.name for member in tar]
        assert names == ["a.json", "b.json", "b.000000.jpg", "b.000001.jpg", "b.scale.npy"]
        assert {(member.mtime, member.uid, member.uname, member.mode) for member in tar} == {(0, 0, "", 0o644)}


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../a.json", "a./../../x", "a..json", "a.", "a", "b.json", "aa.json", "x/a.json", "a.j son"]
)
def test_a_member_of_another_name_is_refused_and_named(name: str) -> None:
    with pytest.raises(SampleError, match=rf"tar member {name!r} is not a\.<extension>"):
        parse_members(tar_of("a.png", name), "a")


def test_a_member_that_occurs_twice_is_refused() -> None:
    with pytest.raises(SampleError, match="occurs twice"):
        parse_members(tar_of("a.json", "a.json"), "a")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE, tarfile.XHDTYPE])
def test_what_is_no_regular_file_is_refused(kind: bytes) -> None:
    with pytest.raises(SampleError, match="no regular USTAR file"):
        parse_members(tar_of("a.json", type=kind, linkname="/etc/passwd"), "a")


def test_a_long_name_in_two_parts_is_refused() -> None:
    with pytest.raises(SampleError, match="no regular USTAR file"):
        parse_members(tar_of("folder/" * 14 + "a.json"), "a")


@pytest.mark.parametrize("cut", [1, 511, 513, 1024 + 100, 1024 + 514])
def test_a_truncated_sample_is_refused(cut: int) -> None:
    with pytest.raises(SampleError, match="no regular USTAR file|ends after"):
        parse_members(tar_of("a.json", "a.png")[:cut], "a")


@pytest.mark.parametrize("place", [0, 100, 124, 130, 150, 260, 300])
def test_a_damaged_header_is_refused(place: int) -> None:
    raw = bytearray(tar_of("a.json"))
    raw[place] ^= 0x15
    with pytest.raises(SampleError, match="damaged|no regular USTAR file"):
        parse_members(bytes(raw), "a")


def test_a_size_beyond_the_sample_is_refused_without_reading_on() -> None:
    info = tarfile.TarInfo("a.json")
    info.size = 8**11 - 1
    with pytest.raises(SampleError, match=r"'a\.json' ends after 3 of 8589934591 bytes"):
        parse_members(info.tobuf(tarfile.USTAR_FORMAT) + b"abc", "a")
