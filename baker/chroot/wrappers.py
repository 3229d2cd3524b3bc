"""The shell scripts that run a program in a root filesystem beside them.

`enter PROGRAM ARGUMENT…` decides how: root unshares its mounts; a user takes bwrap, or where there is none (or NOBWRAP
is set) a user namespace. Where nothing but exec happens, the program keeps the process id of its wrapper, and with it
signals, status and terminal. bwrap stays as a parent, so there a shell hands signals on; on a terminal, where a shell
cannot tell a signal for all from one for itself, a user namespace is taken if there are any. `inside` mounts the view.
"""

from __future__ import annotations

from shlex import quote

from baker.chroot.view import View

ROOTFS, MOUNT, ENTER, INSIDE = "rootfs", "mnt", "enter", "inside"
"""What is in /usr/local/NAME."""

_ENTER = """\
#!/bin/sh
# Runs a program in the root filesystem beside this script: enter PROGRAM ARGUMENT...
# Made by flatcar-bake flatwrap. NOBWRAP=1 does without bwrap.
root={root}
if [ "$(id -u)" = 0 ]; then
    exec unshare --mount --propagation slave -- /bin/sh {inside} "" "" "$@"
fi
terminal() {{ [ -t 0 ] || [ -t 1 ] || [ -t 2 ]; }}
namespace() {{ unshare --user --map-root-user true 2>/dev/null; }}
# Control-C would end bwrap, and with it a program that means to go on.
if [ -n "$NOBWRAP" ] || ! command -v bwrap >/dev/null 2>&1 || {{ terminal && namespace; }}; then
    exec unshare --user --map-root-user --mount --propagation slave -- \\
        /bin/sh {inside} "$(id -u)" "$(id -g)" "$@"
fi

# bwrap is a parent that keeps signals to itself: hand them on to the program, its child.
child=
hand_on() {{
    [ -n "$child" ] || return 0
    programs=$(cat "/proc/$child/task/$child/children" 2>/dev/null || pgrep -P "$child")
    # shellcheck disable=SC2086 # a list of numbers
    kill -s "$1" ${{programs:-$child}} 2>/dev/null
}}
for signal in HUP TERM USR1 USR2 ALRM CONT; do
    # shellcheck disable=SC2064 # now, while it is this signal
    trap "hand_on $signal" "$signal"
done
if terminal; then
    trap : INT QUIT # a terminal tells the program as well
else
    trap "hand_on INT" INT
    trap "hand_on QUIT" QUIT
fi
# A shell lets what it starts in the background ignore INT and QUIT, and gives it no input.
exec 9<&0 # not 3, which may be a socket that systemd hands over
env --default-signal=INT,QUIT bwrap --die-with-parent \\
{arguments}
    -- "$@" <&9 9<&- &
child=$!
exec 9<&-
while :; do
    wait "$child"
    status=$?
    kill -0 "$child" 2>/dev/null || exit "$status"
done
"""

_INSIDE = """\
#!/bin/sh
# Mounts what a program is to see, in a mount namespace that `enter` made, and runs it:
# inside UID GID PROGRAM ARGUMENT...; UID and GID are the user's in a user namespace, else empty.
uid=$1 gid=$2
shift 2
root={root}
mnt={mnt}
mask=$(umask)
umask 022
fail() {{
    echo "{name}: cannot mount $1 in $mnt" >&2
    exit 125
}}
mounted() {{ # SOURCE PATH
    if [ ! -e "$mnt$2" ]; then
        if [ -d "$1" ]; then
            mkdir -p "$mnt$2" || fail "$2"
        else
            mkdir -p "$mnt${{2%/*}}" || fail "$2"
            : >"$mnt$2" || fail "$2"
        fi
    fi
    mount --rbind "$1" "$mnt$2" || fail "$2"
}}
image() {{ mounted "$root$1" "$1"; }}
host() {{ # what the system lacks is left out
    if [ -e "$1" ]; then mounted "$1" "$1"; fi
}}
mount -t tmpfs -o mode=0755,nosuid,nodev tmpfs "$mnt" || fail /
{mounts}
directory=$(pwd -P) || directory=/
[ -d "$mnt$directory" ] || directory=/
umask "$mask"
if [ -n "$uid" ]; then
    exec unshare --user --map-user="$uid" --map-group="$gid" --root="$mnt" --wd="$directory" -- "$@"
fi
exec unshare --root="$mnt" --wd="$directory" -- "$@"
"""

_WRAPPER = """\
#!/bin/sh
exec {enter} {program} "$@"
"""


def wrapper(folder: str, program: str) -> str:
    """The script that stands for `program`, a path in the root filesystem; `folder` is /usr/local/NAME."""
    return _WRAPPER.format(enter=quote(f"{folder}/{ENTER}"), program=quote(program))


def enter_script(folder: str, view: View) -> str:
    """The script `enter`."""
    words = [
        f'--ro-bind "$root"{quote(path)} {quote(path)}' if kind == "image"
        # Binds of bwrap make devices useless, and what the system lacks is left out.
        else f"--dev-bind-try {quote(path)} {quote(path)}"
        for kind, path in view.mounts
    ]  # fmt: skip
    words += [f"--symlink {quote(text)} {quote(f'/{name}')}" for name, text in view.links]
    return _ENTER.format(
        root=quote(f"{folder}/{ROOTFS}"),
        inside=quote(f"{folder}/{INSIDE}"),
        arguments="\n".join(f"    {word} \\" for word in words),
    )


def inside_script(folder: str, view: View) -> str:
    """The script `inside`."""
    lines = [f"{kind} {quote(path)}" for kind, path in view.mounts]
    lines += [
        f'ln -s {quote(text)} "$mnt"{quote(f"/{name}")} || fail {quote(f"/{name}")}' for name, text in view.links
    ]
    name = folder.rpartition("/")[2]
    return _INSIDE.format(
        root=quote(f"{folder}/{ROOTFS}"), mnt=quote(f"{folder}/{MOUNT}"), name=name, mounts="\n".join(lines)
    )
