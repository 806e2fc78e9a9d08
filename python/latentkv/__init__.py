"""latentkv: the memory of conversations with language models, kept small and given back fast."""

__version__ = "0.1.0"
