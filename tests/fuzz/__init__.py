"""Readers of files that nobody vouches for, fed with millions of wrong ones: `make fuzz`."""
