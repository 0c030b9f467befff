"""Names for photographs: which files, which answers, how they are written; put together in predictor.py."""
