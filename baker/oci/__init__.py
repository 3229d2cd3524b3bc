"""Container images as root filesystems: where they come from, what is in them, and unpacking them safely."""
