"""The commands of `sigline`, one file each with `add_parser`."""
