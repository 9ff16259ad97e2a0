"""Many processes as one: what workers tell each other, and a model spread over them."""
