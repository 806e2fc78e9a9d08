"""Published methods of KV cache compression, built from their descriptions to be compared with."""
