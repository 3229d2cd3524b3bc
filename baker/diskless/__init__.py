"""Machines that start without a disk: PXE and ISO, from the release's kernel and cpio with the extensions added."""
