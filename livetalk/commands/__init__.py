"""The commands behind scripts/: they wire components that do not know each other."""
