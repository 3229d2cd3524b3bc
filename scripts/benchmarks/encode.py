"""Encode a raw disk as qcow2 like Flatcar's, as a program of its own: encode.py JOBS RAW TARGET [prove]."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from baker.convert import encode
from baker.qcow2 import write_qcow2
from baker.vendor import DiskFormat

jobs, raw, target = int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
if sys.argv[4:] == ["prove"]:
    encode(raw, target, DiskFormat("qcow2", (("compat", "0.10"),), compress=True), jobs)
else:
    write_qcow2(raw, target, jobs)
