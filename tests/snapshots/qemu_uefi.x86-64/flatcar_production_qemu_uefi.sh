#!/bin/sh
# Starts flatcar_production_qemu_uefi_image.img (Flatcar 4230.2.3, x86-64) in QEMU.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
image=$here/flatcar_production_qemu_uefi_image.img
code=$here/flatcar_production_qemu_uefi_efi_code.qcow2
vars=$here/flatcar_production_qemu_uefi_efi_vars.qcow2
memory=${VM_MEMORY:-2048}
cpus=${VM_CPUS:-2}
ssh_port=${SSH_PORT:-2222}
name=${VM_NAME:-flatcar}
ignition=
keep=no
kvm=yes
firmware=uefi

usage() {
    cat <<USAGE
Usage: $0 [-i CONFIG.ign] [-m MIB] [-n CPUS] [-p PORT] [-b] [-t] [-k] [-- QEMU ARGUMENTS]

  -i FILE   Ignition configuration for the first boot
  -m MIB    memory of the machine (default $memory)
  -n CPUS   processors of the machine (default $cpus)
  -p PORT   port of this host that leads to the machine's SSH (default $ssh_port)
  -b        start by BIOS instead of UEFI
  -t        emulate the processor even if KVM could be used
  -k        keep: write changes into the image itself; without it they are gone when QEMU ends
  -h        this text
USAGE
}

# In QEMU's options a comma ends a value, so commas of file names are doubled.
option() {
    printf '%s\n' "$1" | sed 's/,/,,/g'
}

while getopts 'i:m:n:p:btkh' option; do
    case $option in
    i) ignition=$OPTARG ;;
    m) memory=$OPTARG ;;
    n) cpus=$OPTARG ;;
    p) ssh_port=$OPTARG ;;
    b) firmware=bios ;;
    t) kvm=no ;;
    k) keep=yes ;;
    h) usage && exit 0 ;;
    *) usage >&2 && exit 2 ;;
    esac
done
shift $((OPTIND - 1))

set -- -name "$name" -m "$memory" -smp "$cpus" -nographic \
    -drive "if=none,id=disk,format=qcow2,file=$(option "$image")" -device virtio-blk-pci,drive=disk \
    -netdev "user,id=net,hostfwd=tcp:127.0.0.1:$ssh_port-:22,hostname=$name" -device virtio-net-pci,netdev=net \
    -object rng-random,filename=/dev/urandom,id=rng -device virtio-rng-pci,rng=rng "$@"
[ "$keep" = yes ] || set -- -snapshot "$@"
[ -z "$ignition" ] || set -- -fw_cfg "name=opt/org.flatcar-linux/config,file=$(option "$ignition")" "$@"
if [ "$firmware" = uefi ]; then
    set -- -drive "if=pflash,unit=0,format=qcow2,readonly=on,file=$(option "$code")" \
        -drive "if=pflash,unit=1,format=qcow2,file=$(option "$vars")" "$@"
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
