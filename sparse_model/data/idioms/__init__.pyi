from .names import Kind as Kind
from .programs import program as program, programs as programs
from .scope import Draw as Draw, Scope as Scope
