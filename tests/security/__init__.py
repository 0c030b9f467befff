"""Inputs made to run code, to write where they must not, or to fill the memory; docs/security.md."""
