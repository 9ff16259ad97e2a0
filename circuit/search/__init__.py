"""How the smallest circuit of a task is looked for: masks, discretising, elimination, and ways to compare them with."""
