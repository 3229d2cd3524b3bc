"""Root filesystems for flix and flatwrap: a Debian with real software, made once, and tiny ones out of C sources.

And two ways to run what came out of them: with nothing but the sysext for /usr, and merged over this machine's /usr as
systemd-sysext does it.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from packs import AS_NOBODY as AS_NOBODY
from standin import cache
from standin.packages import network_environment

from baker.run import run

PACKAGES = ("busybox-static", "htop", "musl", "nginx", "python3", "python3-yaml")
_EXCLUDED = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*", "/usr/share/i18n/*")

# A library of its own in a folder of its own, by way of $ORIGIN, and musl's dlopen.
MUSL_LIBRARY = 'const char *greeting(void) { return "hello from musl"; }\n'
MUSL_PROGRAM = """
#include <dlfcn.h>
#include <stdio.h>
const char *greeting(void);
int main(void) { puts(greeting()); return dlopen("libgreeting.so", RTLD_NOW) ? 0 : 1; }
"""

NGINX_CONF = """\
worker_processes 1;
user root;
pid /run/web.pid;
error_log stderr;
events { worker_connections 64; }
http {
    access_log off;
    include /usr/share/web/mime.types;
    client_body_temp_path /run/web-body;
    proxy_temp_path /run/web-proxy;
    fastcgi_temp_path /run/web-fastcgi;
    uwsgi_temp_path /run/web-uwsgi;
    scgi_temp_path /run/web-scgi;
    gzip on;
    server {
        listen 127.0.0.1:PORT;
        root /usr/share/web/html;
    }
}
"""
PORT = 8080
PAGE = "served by the nginx of another distribution\n"
UNIT = """\
[Unit]
Description=Web server out of a root filesystem
[Service]
ExecStart=/usr/sbin/nginx -e stderr -c /usr/share/web/nginx.conf -g 'daemon off;'
"""


def _make(folder: Path) -> None:
    root = folder / "root"
    run(
        ["mmdebstrap", "--quiet", "--mode=root", "--variant=apt", f"--include={','.join(PACKAGES)}",
         *(f"--dpkgopt=path-exclude={pattern}" for pattern in _EXCLUDED), "bookworm", root],
        env=network_environment(),
    )  # fmt: skip
    _add_web(root)
    _add_musl(root, folder)


def _add_web(root: Path) -> None:
    """A web server's own files, as an administrator would put them into a container."""
    site = root / "srv/web"
    (site / "html").mkdir(parents=True)
    (site / "html/index.html").write_text(PAGE)
    (site / "nginx.conf").write_text(NGINX_CONF.replace("PORT", str(PORT)))
    (site / "mime.types").symlink_to("/etc/nginx/mime.types")
    (root / "etc/systemd/system/web.service").write_text(UNIT)


def _add_musl(root: Path, work: Path) -> None:
    """A program and its library, linked with musl."""
    private = root / "usr/lib/greeting"
    private.mkdir()
    (work / "greeting.c").write_text(MUSL_LIBRARY)
    (work / "main.c").write_text(MUSL_PROGRAM)
    library = private / "libgreeting.so"
    run(["musl-gcc", "-shared", "-fPIC", "-Wl,-soname,libgreeting.so", "-o", library, work / "greeting.c"])
    run(
        ["musl-gcc", "-o", root / "usr/bin/greet", work / "main.c", library, "-Wl,-rpath,$ORIGIN/../lib/greeting"]
    )  # fmt: skip


def debian() -> Path:
    """A root filesystem with Debian's software in it; shared, so never write there."""
    ingredients = (PACKAGES, _EXCLUDED, MUSL_LIBRARY, MUSL_PROGRAM, NGINX_CONF, PAGE, UNIT, PORT)
    return cache.item("chroot_debian", ingredients, _make) / "root"


def compile_c(target: Path, source: str, *words: str | Path) -> Path:
    """Compile a C text; returns the program or (with -shared among `words`) the library."""
    target.parent.mkdir(parents=True, exist_ok=True)
    command = ["gcc", "-x", "c", "-", "-x", "none", "-o", target, *words]
    run(command, input=source.encode())
    return target


def libc_root(folder: Path) -> Path:
    """A root filesystem with nothing but glibc in it, in places that only it has."""
    root = folder / "root"
    listed = subprocess.run(["ldd", "/bin/sh"], check=True, capture_output=True, text=True).stdout
    libc = next(word for word in listed.split() if word.endswith("/libc.so.6"))
    loader = next(word for word in listed.split() if "/ld-linux" in word)
    for source, place in ((libc, "usr/lib64/libc.so.6"), (loader, f"usr/lib64/{Path(loader).name}")):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(source).resolve(), root / place)
    for name in ("lib", "lib64"):
        (root / name).symlink_to(f"usr/{name}")
    (root / "usr/lib").mkdir()
    return root


def alone_command(tree: Path, *words: str, binds: Mapping[Path, str] = {}) -> list[str | Path]:
    """The command that runs `words` in a system with nothing but the sysext `tree`, and Flatcar's links at the top."""
    links = [word for name in ("bin", "lib", "lib64") for word in ("--symlink", f"usr/{name}", f"/{name}")]
    extra = [word for source, place in binds.items() for word in ("--ro-bind", str(source), place)]
    return [
        "bwrap", "--unshare-pid", "--die-with-parent", "--ro-bind", tree / "usr", "/usr", *links, "--proc", "/proc",
        "--dev", "/dev", "--tmpfs", "/tmp", "--tmpfs", "/run", "--dir", "/var/log", *extra, "--clearenv",
        "--setenv", "TERM", "linux", "--", *words,
    ]  # fmt: skip


def alone(tree: Path, *words: str, binds: Mapping[Path, str] = {}) -> subprocess.CompletedProcess[str]:
    """Run a command in such a system to its end."""
    command = alone_command(tree, *words, binds=binds)
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)


def merged(tree: Path, *words: str | Path, user: bool = False) -> list[str | Path]:
    """The command that runs `words` with the sysext merged over /usr, in a mount namespace of its own."""
    mount = 'mount -t overlay -o ro,lowerdir="$0/usr:/usr" overlay /usr && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", mount, tree, *(AS_NOBODY if user else ()), *words]
