import os
import re

import pytest

from dinox.utils.whole_files import NamedFile, check_outputs, written_whole


def check(folder, outputs, inputs=(), **options):
    named = [[NamedFile(f"--{name}", folder / name) for name in names] for names in (outputs, inputs)]
    check_outputs(named[0], inputs=named[1], **options)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "there").write_text("precious")
    (tmp_path / "sub").mkdir()
    return tmp_path


def test_what_is_there_is_replaced_only_when_told(folder):
    check(folder, ["new"])
    with pytest.raises(ValueError, match=r"there \(--there\) is there already: .*--overwrite"):
        check(folder, ["new", "there"])
    check(folder, ["there"], overwrite=True)


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("output", ["there", "sub/../there", "link", "hard"])
def test_an_input_is_never_replaced_under_any_name(folder, output, overwrite):
    (folder / "link").symlink_to("there")
    os.link(folder / "there", folder / "hard")
    expected = rf"{re.escape(output)}\) would overwrite what this command reads, .*there \(--there\)"
    with pytest.raises(ValueError, match=expected):
        check(folder, ["new", output], ["there"], overwrite=overwrite)


def test_two_outputs_need_two_names_although_neither_is_there(folder):
    with pytest.raises(ValueError, match=r"--new and --sub/../new would both be written to"):
        check(folder, ["new", "sub/../new"], overwrite=True)


def test_a_file_keeps_its_permissions(folder):
    os.chmod(folder / "there", 0o600)
    with written_whole(folder / "there") as temporary:
        temporary.write_text("newer")
    assert (folder / "there").read_text() == "newer"
    assert (folder / "there").stat().st_mode & 0o777 == 0o600


def test_of_a_link_the_file_that_it_leads_to_is_replaced(folder):
    (folder / "sub" / "link").symlink_to("../there")
    with written_whole(folder / "sub" / "link") as temporary:
        temporary.write_text("newer")
    assert (folder / "sub" / "link").is_symlink() and (folder / "there").read_text() == "newer"
    assert os.listdir(folder / "sub") == ["link"]


def test_a_name_may_be_as_long_as_the_disk_allows(tmp_path):
    with written_whole(tmp_path / ("a" * 255)) as temporary:
        temporary.write_text("content")
    assert os.listdir(tmp_path) == ["a" * 255]
