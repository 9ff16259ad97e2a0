"""What users name files and folders by: text, or an object of pathlib."""

import os
import re
from typing import Annotated

from pydantic import BeforeValidator

from sparse_model.errors import InputError

PathOrURI = str | os.PathLike[str]


def as_uri(place: PathOrURI) -> str:
    """The text of a path or URI; InputError for a URI that pathlib was given, which makes one slash of two."""
    text = os.fspath(place)
    if not isinstance(place, str) and re.match(r"[a-z][a-z0-9+.-]+:/", text):
        raise InputError(f"storage: {place!r}; allowed: a URI as text, 'protocol://…': a Path drops one of its slashes")
    return text


def _text_of_path(value: object) -> object:
    """Anything but a path is left for pydantic to judge."""
    return as_uri(value) if isinstance(value, os.PathLike) else value


URIField = Annotated[str, BeforeValidator(_text_of_path)]
"""A field of a configuration that takes what `as_uri` takes."""
