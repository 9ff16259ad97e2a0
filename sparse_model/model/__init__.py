"""What a forward pass is made of: configuration, transformer, node sites, attention, AbsTopK, loss."""
