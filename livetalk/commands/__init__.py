"""The commands behind scripts/, one module each: they wire components that do not know each other.

memory.py is what their --dry-run prints.
"""
