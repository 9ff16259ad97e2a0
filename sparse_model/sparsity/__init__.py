"""How many weights may be nonzero, and the exact selection of which, on CPU, GPU and shards."""
