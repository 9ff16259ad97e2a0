"""`idioms`: an endless, seeded stream of small Python programs with typed scopes.

Tiny models see a few megabytes of text, so the idiom behind every task of METHOD section 5 is written often, with both
answers equally likely and with distractors around it. Read `programs.py` first; `circuit.tasks` builds its prompts
from the same parts, which is what keeps prompts in distribution.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
