"""The rows: written, read, joined; what is asked of them."""
