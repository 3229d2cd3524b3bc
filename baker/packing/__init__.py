"""What turns a folder into a sysext image: `tree` decides what goes in, and one file per filesystem writes it."""
