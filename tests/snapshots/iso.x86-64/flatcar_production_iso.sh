#!/bin/sh
# Boots Flatcar 4230.2.3 (x86-64) in QEMU as a machine without a disk.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
memory=${VM_MEMORY:-1024}
cpus=${VM_CPUS:-2}
ssh_port=${SSH_PORT:-2222}
kvm=yes
firmware=bios
medium='cd'

usage() {
    cat <<USAGE
Usage: $0 [-m MIB] [-n CPUS] [-p PORT] [-u] [-d] [-t] [-- QEMU ARGUMENTS]

  -m MIB    memory of the machine (default $memory)
  -n CPUS   processors of the machine (default $cpus)
  -p PORT   port of this host that leads to the machine's SSH (default $ssh_port)
  -u        start by UEFI instead of BIOS; OVMF names its firmware file
  -d        as a disk, as on a USB stick, instead of a CD
  -t        emulate the processor even if KVM could be used
  -h        this text
USAGE
}

# In QEMU's options a comma ends a value, so commas of file names are doubled.
option() {
    printf '%s\n' "$1" | sed 's/,/,,/g'
}

while getopts 'm:n:p:udth' option; do
    case $option in
    m) memory=$OPTARG ;;
    n) cpus=$OPTARG ;;
    p) ssh_port=$OPTARG ;;
    u) firmware=uefi ;;
    d) medium=disk ;;
    t) kvm=no ;;
    h) usage && exit 0 ;;
    *) usage >&2 && exit 2 ;;
    esac
done
shift $((OPTIND - 1))

set -- -m "$memory" -smp "$cpus" -nographic -device virtio-rng-pci \
    -netdev "user,id=net,hostfwd=tcp:127.0.0.1:$ssh_port-:22" -device virtio-net-pci,netdev=net "$@"
image=$(option "$here"/flatcar_production_iso_image.iso)
if [ "$medium" = cd ]; then
    set -- -drive "if=none,id=medium,media=cdrom,readonly=on,format=raw,file=$image" "$@"
    set -- -device ide-cd,drive=medium,bootindex=1 "$@"
else
    set -- -drive "if=none,id=medium,readonly=on,format=raw,file=$image" "$@"
    set -- -device virtio-blk-pci,drive=medium,bootindex=1 "$@"
fi
if [ "$firmware" = uefi ]; then
    set -- -drive "if=pflash,unit=0,format=raw,readonly=on,file=$(option "${OVMF:-/usr/share/OVMF/OVMF_CODE_4M.fd}")" "$@"
fi
qemu='qemu-system-x86_64'
machine=q35
host=x86_64
if [ "$kvm" = yes ] && [ -w /dev/kvm ] && [ "$(uname -m)" = "$host" ]; then
    set -- -accel kvm -cpu host "$@"
else
    set -- -accel tcg,thread=multi -cpu max "$@"
fi
exec "$qemu" -machine "$machine" "$@"
