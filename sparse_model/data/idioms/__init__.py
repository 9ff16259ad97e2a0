"""`idioms`: an endless, seeded stream of small Python programs with typed scopes.

Tiny models see a few megabytes of text, so the idiom behind every task of METHOD section 5 is written often, with both
answers equally likely and with distractors around it. Read `programs.py` first; `circuit.tasks` builds its prompts
from the same parts, which is what keeps prompts in distribution.
"""

from sparse_model.data.idioms.names import Kind
from sparse_model.data.idioms.programs import program, programs
from sparse_model.data.idioms.scope import Draw, Scope

VERSION = 2
"""Of what is written, raised with every change of it; part of the name of every dataset made from it."""

__all__ = ["VERSION", "Draw", "Kind", "Scope", "program", "programs"]
