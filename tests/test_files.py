"""What is written where: beside and renamed, through links, straight into what is no file."""

import os
import subprocess
import sys
import threading

import pytest

from minialex.errors import UserError, typed
from minialex.files import require_place, write_beside


def test_a_link_is_followed(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "far/file").write_text("old")
    for name, target in ("link", "far/file"), ("second", "link"), ("dangling", "far/new"):
        (tmp_path / name).symlink_to(target)
        require_place("--csv", str(tmp_path / name))
        write_beside(tmp_path / name, f"by {name}")
        assert (tmp_path / name).is_symlink() and (tmp_path / name).read_text() == f"by {name}"
    assert sorted(os.listdir(tmp_path / "far")) == ["file", "new"] and sorted(os.listdir(tmp_path)) == ["dangling", "far", "link", "second"]


def test_what_is_no_file_stays_what_it_is(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    require_place("--csv", str(tmp_path / "pipe"))
    read = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_text()), daemon=True)
    reader.start()
    write_beside(tmp_path / "pipe", "a table")
    reader.join(10)
    assert read == ["a table"] and (tmp_path / "pipe").is_fifo() and os.listdir(tmp_path) == ["pipe"]
    null = tmp_path / "null"
    null.symlink_to(os.devnull)      # if it were replaced, then the link and not the machine's own
    write_beside(null, "x")
    assert null.is_symlink() and null.is_char_device()


@pytest.mark.skipif(not os.path.exists("/dev/stdout"), reason="there is no /dev/stdout here")
@pytest.mark.parametrize("to", ["| cat", "> {folder}/file; cat {folder}/file", ">> {folder}/log; cat {folder}/log"])
def test_standard_output_by_its_name(tmp_path, to):
    (tmp_path / "log").write_text("")
    program = "from minialex.files import *; print('before', flush=True); write_beside('/dev/stdout', 'table\\n'); print('after')"
    done = subprocess.run(["bash", "-c", f'"{sys.executable}" -c "{program}" {to.format(folder=tmp_path)}'], capture_output=True, text=True)
    assert done.stdout == "before\ntable\nafter\n" and done.stderr == ""


def test_places_where_nothing_can_be_written(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_text("x")
    for path, words in ("loop", "Too many levels"), ("file/x", "Not a directory"), ("none/x", "there is no folder"), ("", "it is a folder"):
        with pytest.raises(UserError, match=f"--csv .*{words}"):
            require_place("--csv", str(tmp_path / path))
        with pytest.raises(UserError, match="cannot be written"):
            write_beside(tmp_path / path, "x")
    assert sorted(os.listdir(tmp_path)) == ["file", "loop"]


@pytest.mark.parametrize("name", ["plain", "a b", "it's", "-x", "a\nb'c\\", os.fsdecode(b"\xff\xe4"), "$HOME `ls` *"])
def test_a_path_in_a_printed_command_is_what_a_shell_makes_of_it(name):
    told = typed(name)
    made = subprocess.run(["bash", "-c", f"printf %s {told}"], capture_output=True).stdout
    assert made in (os.fsencode(name), b"./" + os.fsencode(name)) and not made.startswith(b"-") and told.isprintable()
