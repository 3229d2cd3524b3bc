"""Torcx archives, which Container Linux and older Flatcar releases unpacked at boot, as sysexts."""
