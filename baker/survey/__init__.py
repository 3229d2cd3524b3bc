"""What is in a sysext, beyond what decides whether it merges: its programs and what they need, its units and what
starts them. `report` is what `sysext inspect` shows, `findings` what `sysext lint` says about it."""
