"""Software of another distribution runs in a booted Flatcar: nginx by flix, htop and python3 by flatwrap."""

from __future__ import annotations

from pathlib import Path

import chroots
import pytest
from cli import flatcar_bake, release_environment

pytestmark = pytest.mark.boot

NGINX = (
    "/usr/sbin/nginx", "/usr/lib/systemd/system/nginx.service", "/etc/systemd/system/web.service:"
    "/usr/lib/systemd/system/web.service", "/srv/web:/usr/share/web",
)  # fmt: skip
WRAPPED = ("/usr/bin/htop", "/usr/bin/python3", "/usr/bin/greet")
IN_GUEST = (
    "nginx -t -e stderr -c /usr/share/web/nginx.conf",
    "systemctl is-active web.service",
    f"exec 3<>/dev/tcp/127.0.0.1/{chroots.PORT}; printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3",
    "TERM=linux htop --version",
    'python3 -c \'import ssl, sqlite3, yaml; print(open("/etc/os-release").read(), yaml.__name__, "loaded")\'',
    "greet",
    "setpriv --reuid=500 --regid=500 --clear-groups htop --version",
)


def test_nginx_serves_and_wrapped_programs_run(stand_in: Path, tmp_path: Path) -> None:
    root = chroots.debian()
    done = flatcar_bake("flix", root, "web", *NGINX, "--unit-enable", "web.service", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = flatcar_bake("flatwrap", root, "tools", *WRAPPED, "--compression", "lz4", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    env = release_environment(stand_in) | {"FLATCAR_BAKE_CACHE_DIR": str(tmp_path / "cache")}
    done = flatcar_bake(
        "-v", "qemu_uefi", "-o", tmp_path / "out", "web:./web.raw", "tools:./tools.raw", env=env, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    image = tmp_path / "out/flatcar_production_qemu_uefi_image.img"
    runs = [word for command in IN_GUEST for word in ("--run", command)]
    done = flatcar_bake(
        "boot", image, "--expect-sysext", "web", "--expect-sysext", "tools", "--timeout", "400", "--json", *runs
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for words in ("test is successful", chroots.PAGE.strip(), "htop 3.", "yaml loaded", "hello from musl"):
        assert words in done.stdout
