"""How a model may be spread over workers, in words: for settings, which need none of what does it."""

from typing import Literal

Parallel = Literal["ddp", "fsdp"]
"""Whether every worker holds the whole model, or its shard of weights, gradients and moments."""
