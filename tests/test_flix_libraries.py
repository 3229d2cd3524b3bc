"""flix takes exactly the libraries that the dynamic linker would, wherever they hide, and refuses what cannot work."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

import chroots
import pytest
from chroots import compile_c, libc_root
from cli import flatcar_bake
from packs import AS_NOBODY, NOBODY
from programs import debian, stand_in

from baker.chroot.flix import FlixRequest, flix
from baker.chroot.tree import Made
from baker.errors import BakeError, ImageError, UsageError
from baker.model import Arch

PROGRAM = '#include <stdio.h>\nint one(void);\nint main(void) { printf("%d\\n", one()); return 0; }\n'


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return libc_root(tmp_path)


def take(root: Path, *paths: str, **options: object) -> Made:
    """Run flix into a folder beside the root filesystem."""
    target = root.parent / "tree"
    shutil.rmtree(target, ignore_errors=True)
    return flix(FlixRequest(root, "tool", paths, **options), target)  # type: ignore[arg-type]


def runs(made: Made, *words: str) -> str:
    """What the program prints in a system that has nothing else."""
    said = chroots.alone(made.tree, *words)
    assert said.returncode == 0, said.stderr
    return said.stdout.strip()


def private(made: Made) -> set[str]:
    """The names in /usr/local/tool."""
    return {path.name for path in (made.tree / "usr/local/tool").iterdir()}


def library(root: Path, path: str, body: str = "int one(void) { return 1; }", *words: str | Path) -> Path:
    target = root / path
    return compile_c(target, body, "-shared", "-fPIC", f"-Wl,-soname,{target.name}", *words)


def program(root: Path, path: str, *words: str | Path, source: str = PROGRAM) -> Path:
    return compile_c(root / path, source, *words)


def test_a_library_is_found_by_origin(root: Path) -> None:
    one = library(root, "usr/lib/tool/private/libone.so")
    program(root, "usr/lib/tool/bin/tool", one, "-Wl,-rpath,$ORIGIN/../private")
    made = take(root, "/usr/lib/tool/bin/tool:/usr/bin/tool")
    assert private(made) == {"ld-linux-x86-64.so.2", "libc.so.6", "libone.so"}
    assert runs(made, "/usr/bin/tool") == "1"


def test_a_link_to_the_program_counts_for_origin(root: Path) -> None:
    one = library(root, "usr/lib/tool/private/libone.so")
    program(root, "usr/lib/tool/bin/tool", one, "-Wl,-rpath,${ORIGIN}/../private")
    (root / "usr/bin").mkdir()
    (root / "etc/alternatives").mkdir(parents=True)
    (root / "usr/bin/tool").symlink_to("/etc/alternatives/tool")
    (root / "etc/alternatives/tool").symlink_to("/usr/lib/tool/bin/tool")
    made = take(root, "/usr/bin/tool")
    assert os.readlink(made.tree / "usr/bin/tool") == "../lib/tool/bin/tool"
    assert runs(made, "/usr/bin/tool") == "1"


def test_an_rpath_counts_for_libraries_of_libraries_and_a_runpath_does_not(root: Path) -> None:
    two = library(root, "opt/two/libtwo.so", "int two(void) { return 2; }")
    one = library(root, "opt/one/libone.so", "int two(void); int one(void) { return two(); }", two)
    where = "-Wl,-rpath,/opt/one:/opt/two"
    # --allow-shlib-undefined: the linker of this machine does not know of /opt/two.
    program(root, "usr/bin/tool", one, where, "-Wl,--disable-new-dtags,--allow-shlib-undefined")
    assert runs(take(root, "/usr/bin/tool"), "/usr/bin/tool") == "2"
    program(root, "usr/bin/tool", one, where, "-Wl,--enable-new-dtags,--allow-shlib-undefined")
    with pytest.raises(ImageError, match=r"libtwo.so, needed by /opt/one/libone.so \(through /usr/bin/tool\)"):
        take(root, "/usr/bin/tool")


def test_ld_so_conf_is_that_of_the_folder(root: Path) -> None:
    one = library(root, "opt/real/libone.so")
    program(root, "usr/bin/tool", one)
    (root / "opt/lib").symlink_to("/opt/real")  # absolute: this machine has no such folder
    (root / "etc/ld.so.conf.d").mkdir(parents=True)
    (root / "etc/ld.so.conf").write_text("# folders\ninclude /etc/ld.so.conf.d/*.conf\n")
    (root / "etc/ld.so.conf.d/a.conf").write_text("include deeper.inc\n")
    (root / "etc/ld.so.conf.d/deeper.inc").write_text("/opt/lib # by a link\n")
    made = take(root, "/usr/bin/tool")
    assert runs(made, "/usr/bin/tool") == "1"
    assert {told.source for told in made.told} >= {"/opt/real/libone.so"}


def test_a_library_of_another_machine_is_passed_over(root: Path) -> None:
    one = library(root, "usr/local/lib/libone.so")
    program(root, "usr/bin/tool", one)
    (root / "usr/lib/libone.so").write_bytes(stand_in("foreign", Arch.ARM64))
    assert runs(take(root, "/usr/bin/tool"), "/usr/bin/tool") == "1"


def test_no_library_of_this_machine_is_ever_taken(root: Path) -> None:
    host = next(Path("/usr/lib/x86_64-linux-gnu").glob("libz.so.1"))
    program(root, "usr/bin/tool", "-Wl,--no-as-needed", host, source="int main(void) { return 0; }")
    (root / "usr/lib/libz.so.1").symlink_to(host)
    with pytest.raises(ImageError, match=r"libz\.so\.1, needed by /usr/bin/tool"):
        take(root, "/usr/bin/tool")


def test_folders_bring_plugins_that_find_their_libraries(root: Path) -> None:
    """A program loads a plugin of its own by path, which needs a library that only it needs."""
    two = library(root, "usr/lib64/libtwo.so", "int two(void) { return 42; }")
    library(root, "usr/lib/tool/plugin.so", "int two(void); int plugin(void) { return two(); }", two)
    source = """
    #include <dlfcn.h>
    #include <stdio.h>
    int main(void) {
        int (*plugin)(void);
        void *handle = dlopen("/usr/lib/tool/plugin.so", RTLD_NOW);
        if (!handle) { puts(dlerror()); return 1; }
        *(void **)&plugin = dlsym(handle, "plugin");
        printf("%d\\n", plugin());
    }
    """
    program(root, "usr/bin/tool", source=source)
    (root / "usr/lib/tool/notes.txt").write_text("read me\n")
    made = take(root, "/usr/bin/tool", "/usr/lib/tool")
    assert runs(made, "/usr/bin/tool") == "42"
    assert (made.tree / "usr/lib/tool/notes.txt").read_text() == "read me\n"


def test_extra_libraries_are_found_by_name(root: Path) -> None:
    library(root, "usr/lib64/libone.so")
    source = """
    #include <dlfcn.h>
    #include <stdio.h>
    int main(void) { puts(dlopen("libone.so", RTLD_NOW) ? "loaded" : dlerror()); }
    """
    program(root, "usr/bin/tool", source=source)
    assert "cannot open shared object" in runs(take(root, "/usr/bin/tool"), "/usr/bin/tool")
    for word in ("libone.so", "/usr/lib64/libone.so"):
        made = take(root, "/usr/bin/tool", extra_libs=(word,))
        assert (made.tree / "usr/local/tool/extralibs/libone.so").is_file()
        assert runs(made, "/usr/bin/tool") == "loaded"
    with pytest.raises(ImageError, match=r"no library libnone\.so"):
        take(root, "/usr/bin/tool", extra_libs=("libnone.so",))


def test_libraries_in_a_folder_that_comes_along_stay_there(root: Path) -> None:
    one = library(root, "usr/lib/tool/lib/libone.so")
    program(root, "usr/lib/tool/bin/tool", one, "-Wl,-rpath,$ORIGIN/../lib")
    made = take(root, "/usr/lib/tool")
    assert "libone.so" not in private(made)
    assert runs(made, "/usr/lib/tool/bin/tool") == "1"


def test_two_libraries_of_one_name_are_refused(root: Path) -> None:
    for number in (1, 2):
        one = library(root, f"opt/{number}/libone.so", f"int one(void) {{ return {number}; }}")
        program(root, f"usr/bin/tool{number}", one, f"-Wl,-rpath,/opt/{number}")
    with pytest.raises(ImageError, match=r"Two different libraries are called libone\.so: /opt/1/libone\.so"):
        take(root, "/usr/bin/tool1", "/usr/bin/tool2")


def test_a_missing_library_may_be_forgiven_by_name(root: Path) -> None:
    one = library(root, "usr/lib64/libone.so")
    program(
        root, "usr/lib/tool/plugin.so", one, "-shared", "-fPIC", source="int one(void); int p(void) { return one(); }"
    )
    program(root, "usr/bin/tool", source="int main(void) { return 0; }")
    one.unlink()
    with pytest.raises(ImageError, match=r"libone\.so, needed by /usr/lib/tool/plugin\.so"):
        take(root, "/usr/bin/tool", "/usr/lib/tool")
    made = take(root, "/usr/bin/tool", "/usr/lib/tool", ignore_missing=("libo*",))
    assert made.notes == ["libone.so, needed by /usr/lib/tool/plugin.so, is missing"]


def test_a_static_program_is_left_as_it_is(root: Path) -> None:
    static = root / "usr/bin/busybox"
    static.parent.mkdir()
    shutil.copy(debian("busybox-static") / "bin/busybox", static)
    made = take(root, "/usr/bin/busybox")
    assert (made.tree / "usr/bin/busybox").read_bytes() == static.read_bytes()
    assert not (made.tree / "usr/local").exists() and made.arch is Arch.X86_64


def broken(root: Path, kind: str) -> Path:
    """A program with something about it that a sysext cannot give."""
    path = program(root, "usr/bin/tool", source="int main(void) { return 0; }")
    if kind == "set-id":
        path.chmod(0o4755)
    elif kind == "capabilities":
        # Version 2 of the capability data, permitted: CAP_NET_RAW; linux/capability.h.
        os.setxattr(path, "security.capability", bytes.fromhex("0100000200200000000000000000000000000000"))
    elif kind == "foreign":
        path.write_bytes(stand_in("foreign", Arch.ARM64))
    elif kind == "32-bit":
        path.write_bytes(b"\x7fELF\x01" + bytes(60))
    elif kind == "script":
        path.write_text("#!/usr/bin/perl\n")
    elif kind == "env-script":
        path.write_text("#!/usr/bin/env -S perl -w\n")
    elif kind == "pipe":
        path.unlink()
        os.mkfifo(path)
    elif kind == "dangling":
        path.unlink()
        path.symlink_to("/etc/alternatives/tool")
    elif kind == "loader":
        (root / "usr/lib64/ld-linux-x86-64.so.2").unlink()
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("set-id", "/usr/bin/tool is a set-id program"),
        ("capabilities", "/usr/bin/tool has file capabilities"),
        ("foreign", "/usr/bin/tool is for arm64, not for x86-64"),
        ("32-bit", "/usr/bin/tool is for another kind of machine, not for x86-64"),
        ("script", "/usr/bin/tool is a script for /usr/bin/perl, which is neither"),
        ("env-script", "/usr/bin/tool is a script for perl, which is neither"),
        ("pipe", "/usr/bin/tool is neither a file, a folder nor a link"),
        ("dangling", "/usr/bin/tool is a link to /etc/alternatives/tool, which does not exist"),
        ("loader", "/lib64/ld-linux-x86-64.so.2, the dynamic linker of /usr/bin/tool"),
    ],
)
def test_what_cannot_work_is_refused_by_name(kind: str, message: str, root: Path) -> None:
    broken(root, kind)
    with pytest.raises(ImageError, match=message):
        take(root, "/usr/bin/tool", arch=Arch.X86_64)


def test_scripts_of_what_comes_along_or_of_flatcar_are_taken(root: Path) -> None:
    program(root, "usr/bin/python3", source="int main(void) { return 7; }")
    for name, line in (("own", "#!/usr/bin/env python3"), ("old", "#!/bin/python3 -E"), ("shell", "#! /bin/sh -e")):
        (root / f"usr/bin/{name}").write_text(f"{line}\n")
        (root / f"usr/bin/{name}").chmod(0o755)
    (root / "bin").symlink_to("usr/bin")
    made = take(root, "/usr/bin/python3", "/usr/bin/own", "/bin/old", "/usr/bin/shell")
    reasons = {told.path: told.why for told in made.told}
    assert "a script for python3, which comes along" in reasons["/usr/bin/own"]
    assert "a script for python3, which comes along" in reasons["/usr/bin/old"]
    assert "a script for Flatcar's own sh" in reasons["/usr/bin/shell"]
    assert chroots.alone(made.tree, "/usr/bin/old").returncode == 7


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/usr/bin/toll", "no /usr/bin/toll"),
        ("usr/bin/tool", "is no path"),
        ("/usr/../etc/passwd", "is no path"),
        ("/etc/passwd", "/etc/passwd is outside of /usr"),
        ("/etc/passwd:/etc/passwd", "/etc/passwd is outside of /usr"),
        ("/etc/passwd:/usr/../etc/x", "is no path"),
    ],
)
def test_paths_that_make_no_sense(path: str, message: str, root: Path) -> None:
    program(root, "usr/bin/tool", source="int main(void) { return 0; }")
    (root / "etc").mkdir()
    (root / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\n")
    with pytest.raises(UsageError, match=message) as caught:
        take(root, path)
    assert path != "/usr/bin/toll" or "tool" in (caught.value.hint or "")


def test_a_system_without_merged_usr(root: Path) -> None:
    """As Alpine is: /bin is a folder, and its programs are one."""
    (root / "bin").mkdir()
    shutil.copy(debian("busybox-static") / "bin/busybox", root / "bin/busybox")
    (root / "bin/cat").symlink_to("/bin/busybox")
    made = take(root, "/bin/cat")
    assert os.readlink(made.tree / "usr/bin/cat") == "busybox"
    assert chroots.alone(made.tree, "/bin/cat", "--help").returncode == 0


def test_sbin_becomes_bin(root: Path) -> None:
    program(root, "usr/sbin/tool", source="int main(void) { return 0; }")
    made = take(root, "/usr/sbin/tool")
    assert (made.tree / "usr/bin/tool").is_file() and not (made.tree / "usr/sbin").exists()


def test_hostile_links_lead_nowhere(root: Path, tmp_path: Path) -> None:
    """Whatever the folder's links say, nothing of this machine comes along, and nothing is written to it."""
    secret = tmp_path / "secret"
    secret.write_text("of this machine\n")
    data = root / "usr/share/data"
    data.mkdir(parents=True)
    (data / "absolute").symlink_to(secret)
    (data / "climbing").symlink_to("../" * 40 + str(secret).lstrip("/"))
    (data / "circle").symlink_to("circle")
    (data / "out").symlink_to("/")
    (data / "passwd").symlink_to("/etc/passwd")
    made = take(root, "/usr/share/data")
    assert all(path.is_symlink() for path in (made.tree / "usr/share/data").iterdir())
    assert any("absolute leads nowhere" in note for note in made.notes)
    (root / "usr/lib/evil").symlink_to(tmp_path)
    for word in ("/usr/lib/evil/secret", "/usr/share/data/absolute", "/usr/share/data/circle"):
        with pytest.raises(BakeError):
            take(root, word)


def test_names_out_of_elf_files_lead_nowhere(root: Path, tmp_path: Path) -> None:
    """A soname, or what a program needs, may be a path that climbs."""
    climbing = "../" * 8 + "escaped.so"
    one = compile_c(
        root / "usr/lib64/libone.so", "int one(void) { return 1; }", "-shared", "-fPIC", "-Wl,-soname," + climbing
    )
    program(root, "usr/bin/tool", source="int main(void) { return 0; }")
    made = take(root, "/usr/bin/tool", extra_libs=("libone.so",))
    assert [path.name for path in (made.tree / "usr/local/tool/extralibs").iterdir()] == ["libone.so"]
    program(root, "usr/bin/tool", one)
    with pytest.raises(ImageError, match=r"escaped\.so, needed by /usr/bin/tool"):
        take(root, "/usr/bin/tool")


def test_a_library_that_is_needed_by_its_path(root: Path) -> None:
    (root / "opt").mkdir()
    # Without a soname, the path that it has when it is linked counts.
    path = Path("/tmp") / f"flix-{os.getpid()}" / "libone.so"
    compile_c(path, "int one(void) { return 1; }", "-shared", "-fPIC")
    program(root, "usr/bin/tool", path)
    (root / path.relative_to("/")).parent.mkdir(parents=True)
    path.rename(root / path.relative_to("/"))
    path.parent.rmdir()
    with pytest.raises(ImageError, match=f"/usr/bin/tool needs a library by its path, {path}"):
        take(root, "/usr/bin/tool")


def test_modes_do_not_depend_on_the_umask(root: Path) -> None:
    program(root, "usr/bin/tool", source="int main(void) { return 0; }")
    before = os.umask(0o077)
    try:
        made = take(root, "/usr/bin/tool")
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in made.tree.rglob("*")}
    assert modes == {0o755}


def test_no_root_is_needed(root: Path, tmp_path: Path) -> None:
    program(root, "usr/bin/tool", source="int main(void) { return 3; }")
    home = tmp_path / "home"
    home.mkdir()
    os.chown(home, NOBODY, NOBODY)
    for folder in [root, *root.parents][:-2]:
        folder.chmod(0o755)
    env = {"HOME": str(home), "TMPDIR": str(home)}
    done = flatcar_bake("flix", root, "tool", "/usr/bin/tool", "--dir-only", cwd=home, env=env, prefix=AS_NOBODY)
    assert done.returncode == 0, done.stderr
    assert chroots.alone(home / "tool", "/usr/bin/tool").returncode == 3


def test_the_folder_is_only_read(root: Path) -> None:
    program(root, "usr/bin/tool", source="int main(void) { return 0; }")
    listing = ["find", root, "-printf", "%p %m %s %T@ %C@ %l\n"]
    before = subprocess.run(listing, check=True, capture_output=True).stdout
    take(root, "/usr/bin/tool")
    assert subprocess.run(listing, check=True, capture_output=True).stdout == before
