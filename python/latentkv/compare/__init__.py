"""latentkv and the published methods on the same conversations: `python -m latentkv.compare`."""
