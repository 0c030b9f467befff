"""Faults injected for real into real runs, and the table of how many were survived: `make faults`."""
