"""From data to one HTML file: template, style and scripts from their files, and a policy that allows nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
from functools import cache
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup


def html(template: str, data: Any, styles: list[str], scripts: list[str], **values: Any) -> str:
    """A page: scripts and styles are allowed by their hashes, everything else is not, the network least of all."""
    style, script = "\n".join(styles), "\n".join(["(() => {", '"use strict";', *scripts, "})();"])
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    filled = _environment().from_string(template)
    return filled.render(
        policy=policy, style=Markup(style), script=Markup(script), data=Markup(embedded(data)), **values
    )


def embedded(data: Any) -> str:
    """JSON that no parser of HTML takes for anything else."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


@cache
def asset(name: str, package: str = "circuit.pages") -> str:
    """A file of the folder `assets` of a package."""
    return (resources.files(package) / "assets" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
