from .names import Kind as Kind
from .programs import program as program
from .scope import Draw as Draw, Scope as Scope
