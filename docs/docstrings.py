"""Docstrings for the site: formulas as MathML, code for the cross-references of Sphinx, fields with their comments."""

from __future__ import annotations

import re
import textwrap
from typing import Any

import griffe
from latex2mathml.converter import convert

FORMULA = re.compile(r"^\.\. math::\n((?:(?:[ \t]+.*)?\n)+)", re.MULTILINE)
EXAMPLE = re.compile(r"^Example:$", re.MULTILINE)  # griffe knows the plural
ROLE = re.compile(r":(?:class|func|mod):(`[^`]+`)")


def _mathml(match: re.Match[str]) -> str:
    formula = textwrap.dedent(match[1]).strip()
    return convert(rf"\begin{{align*}}{formula}\end{{align*}}", display="block") + "\n\n"


class Readable(griffe.Extension):
    """Rewrites every docstring that is collected."""

    def on_object(self, *, obj: Any, **_: Any) -> None:
        """An object with its members was read from its source."""
        if obj.is_attribute and obj.docstring is None and obj.lineno is not None:
            _, marker, comment = obj.lines_collection[obj.filepath][obj.lineno - 1].partition("  # ")
            if marker and not comment.startswith(("type:", "noqa")):
                obj.docstring = griffe.Docstring(comment, parent=obj, lineno=obj.lineno)
        if obj.docstring is not None:
            text = FORMULA.sub(_mathml, obj.docstring.value)
            obj.docstring.value = EXAMPLE.sub("Examples:", ROLE.sub(r"\1", text))
