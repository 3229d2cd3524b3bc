# Sourced by demo and test: installs the system packages that are missing, and a virtual environment with the project.
# shellcheck shell=bash

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${FLATCAR_BAKE_VENV:-$here/.venv}

say() { printf '==> %s\n' "$*" >&2; }

install_system_packages() {
    local missing
    missing=$(sed -e 's/#.*//' -e '/^[[:space:]]*$/d' "$here/scripts/system-packages.txt" | while read -r package; do
        dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || printf '%s ' "$package"
    done)
    [ -n "$missing" ] || return 0
    say "installing system packages: $missing"
    local as_root=()
    [ "$(id -u)" = 0 ] || as_root=(sudo)
    "${as_root[@]}" apt-get update -q >&2
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -y -q --no-install-recommends $missing >&2
}

install_project() {
    [ -x "$venv/bin/python" ] || { say "creating $venv" && python3 -m venv "$venv"; }
    # A hash of what decides the environment, so that a second run is instant.
    local want
    want=$(cat "$here/pyproject.toml" | sha256sum)
    if [ "$(cat "$venv/.installed" 2>/dev/null)" != "$want$1" ]; then
        say "installing flatcar-bake and what it needs"
        "$venv/bin/python" -m pip install -q --disable-pip-version-check -e "$here[$1]" >&2
        printf '%s' "$want$1" >"$venv/.installed"
    fi
}
