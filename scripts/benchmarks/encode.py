"""Encode a raw disk as qcow2 like Flatcar's, as a program of its own: encode.py JOBS RAW TARGET [prove]."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from baker.convert import encode
from baker.formats import NATIVE_QCOW2
from baker.qcow2 import write_qcow2

jobs, raw, target = int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
if sys.argv[4:] == ["prove"]:
    encode(raw, target, NATIVE_QCOW2, jobs)
else:
    write_qcow2(raw, target, jobs)
