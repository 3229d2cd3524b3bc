#!/usr/bin/env bash
# The baseline: the steps people run by hand today, one after the other, for the raw image and for a qcow2.
# usage: pipeline.sh RELEASE-URL KEY SYSEXT, in an empty folder, as root. Prints the time at which each stage begins.
# `losetup -P` is not used because kernels without GPT support make no partition nodes; offsets do the same.
set -euo pipefail
url=$1 key=$2 sysext=$3
image=flatcar_production_image.bin
root_sectors=12943360 disk_bytes=9116319744 # the vm layout, old generation

stage() { printf '%s %s\n' "$EPOCHREALTIME" "$1"; }
# The start (1) or size (2) of ROOT in sectors.
field() { sfdisk --dump "$1" | sed -n "s/.*start= *\([0-9]*\), size= *\([0-9]*\),.*name=\"ROOT\".*/\\$2/p"; }
attach() { losetup --find --show --offset $(($(field "$1" 1) * 512)) --sizelimit $(($(field "$1" 2) * 512)) "$1"; }

stage download
curl -fsS -O "$url/$image.bz2" -O "$url/$image.bz2.sig"
stage verify
mkdir -m 700 keys
gpg --homedir keys --batch --quiet --import "$key"
gpg --homedir keys --batch --quiet --verify "$image.bz2.sig" "$image.bz2" 2>/dev/null
stage unpack
bunzip2 "$image.bz2"
stage inject
loop=$(attach "$image")
mkdir root
mount "$loop" root
mkdir -p root/opt/extensions/payload root/etc/extensions
cp "$sysext" root/opt/extensions/payload/
ln -s "/opt/extensions/payload/${sysext##*/}" root/etc/extensions/payload.raw
umount root
losetup --detach "$loop"
stage generic-is-done
cp --sparse=always "$image" vm.bin
truncate --size "$disk_bytes" vm.bin
sfdisk --quiet --relocate gpt-bak-std vm.bin
echo "size=$root_sectors" | sfdisk --quiet --no-reread --force --partno 9 vm.bin >/dev/null
loop=$(attach vm.bin)
e2fsck -fp "$loop" >/dev/null || [ $? = 1 ]
resize2fs "$loop" >/dev/null 2>&1
losetup --detach "$loop"
stage convert
qemu-img convert -c -f raw -O qcow2 -o compat=0.10 vm.bin flatcar_production_qemu_uefi_image.img
stage end
