#!/bin/sh
# Boots Flatcar 4230.2.3 (x86-64) in QEMU as a machine without a disk.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
memory=${VM_MEMORY:-1024}
cpus=${VM_CPUS:-2}
ssh_port=${SSH_PORT:-2222}
kvm=yes

usage() {
    cat <<USAGE
Usage: $0 [-m MIB] [-n CPUS] [-p PORT] [-t] [-- QEMU ARGUMENTS]

  -m MIB    memory of the machine (default $memory)
  -n CPUS   processors of the machine (default $cpus)
  -p PORT   port of this host that leads to the machine's SSH (default $ssh_port)
  -t        emulate the processor even if KVM could be used
  -h        this text
USAGE
}

# In QEMU's options a comma ends a value, so commas of file names are doubled.
option() {
    printf '%s\n' "$1" | sed 's/,/,,/g'
}

while getopts 'm:n:p:th' option; do
    case $option in
    m) memory=$OPTARG ;;
    n) cpus=$OPTARG ;;
    p) ssh_port=$OPTARG ;;
    t) kvm=no ;;
    h) usage && exit 0 ;;
    *) usage >&2 && exit 2 ;;
    esac
done
shift $((OPTIND - 1))

set -- -m "$memory" -smp "$cpus" -nographic -device virtio-rng-pci \
    -netdev "user,id=net,hostfwd=tcp:127.0.0.1:$ssh_port-:22" -device virtio-net-pci,netdev=net "$@"
initrd=$here/flatcar_production_pxe_image.cpio.gz
# QEMU takes one file, and the kernel several in a row.
initrd=$(mktemp)
trap 'rm -f "$initrd"' EXIT
cat "$here"/flatcar_production_pxe_image.cpio.gz "$here"/flatcar_production_pxe_oem.cpio.gz >"$initrd"
set -- -kernel "$here"/flatcar_production_pxe.vmlinuz -initrd "$initrd" -append 'console=tty0 console=ttyS0,115200n8 flatcar.first_boot=1 quiet' "$@"
qemu='qemu-system-x86_64'
machine=q35
host=x86_64
if [ "$kvm" = yes ] && [ -w /dev/kvm ] && [ "$(uname -m)" = "$host" ]; then
    set -- -accel kvm -cpu host "$@"
else
    set -- -accel tcg,thread=multi -cpu max "$@"
fi
"$qemu" -machine "$machine" "$@"
