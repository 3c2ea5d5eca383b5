"""Docstrings hold equations in Unicode, which reStructuredText would misread: escape them, and link their names."""

import re

import names
from docutils import nodes

ARGUMENT = re.compile(r"( +\*{0,2}\w+: )(.*)")
SECTION = re.compile(r"(Args|Returns|Raises|Yields|Attributes):$")


def on_signature(app, what, name, obj, options, signature, return_annotation):
    return names.signature(name)


def on_docstring(app, what, name, obj, options, lines) -> None:
    """In place: text escaped, `names` linked, indented blocks outside of the sections kept as they are."""
    if lines and _is_alias(lines[0]):
        lines.clear()
    module = name if what == "module" else name.rpartition(".")[0]
    result, section, literal = [], False, False
    for line in lines:
        indented = line.startswith("    ")
        if line and not indented:
            section, literal = bool(SECTION.match(line)), False
        if SECTION.match(line) or not line:
            result.append(line)
        elif indented and not section and (literal or not result or not result[-1]):
            result += [line] if literal else ["::", "", line]
            literal = True
        else:
            argument = ARGUMENT.fullmatch(line) if section else None
            start, text = argument.groups() if argument else ("", line)
            result.append(start + escaped(text, module))
    lines[:] = result


def equation_first(app, domain, objtype, content) -> None:
    """The typeset equation, which stands after the docstring in the reference's pages, moves up to its first line."""
    for block in [child for child in content if isinstance(child, nodes.math_block)]:
        content.remove(block)
        content.insert(1, block)


def escaped(text: str, module: str) -> str:
    def code(match):
        full = names.resolve(match[1], module)
        return f":py:obj:`{match[1]} <{full}>`" if full else f"``{match[1]}``"

    parts = re.split(r"(`+[^`]*`+)", text)
    for place, part in enumerate(parts):
        if place % 2:
            parts[place] = re.sub(r"^`+([^`]*)`+$", code, part)
        else:
            bullet = "* " if part.startswith("* ") else ""
            parts[place] = bullet + re.sub(r"([\\*|]|_(?!\w))", r"\\\1", part.removeprefix(bullet))
            if place:
                parts[place] = re.sub(r"^(?=\w)", r"\\ ", parts[place])
    return "".join(parts)


def skip_undocumented_field(app, what, name, obj, skip, options):
    """A NamedTuple's field without a line of its own stands in the signature already."""
    return True if _is_alias(getattr(obj, "__doc__", None)) and name not in names.documented_fields() else None


def _is_alias(text) -> bool:
    return (text or "").startswith("Alias for field number")
