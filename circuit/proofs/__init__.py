"""Every proof that a circuit can pass or fail, and the words for it."""
