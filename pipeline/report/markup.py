"""HTML that is safe because escaping is what happens when nobody thinks of it.

``tag("td", text)`` escapes its children unless they are markup that ``tag`` itself has made. So a
sample that contains ``<script>`` stays text, and tags are balanced by construction.
"""

import html

# HTML has no way to write these; a model that writes bytes does write them
_CONTROLS = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\t\n"}
_CONTROLS[0x7F] = "␡"
_VOID = ("meta", "br")


class Html(str):
    """Markup: text that is not escaped again."""

    __slots__ = ()


def escaped(text: object) -> Html:
    """Any text as markup that shows it; control characters become their visible symbols."""
    if isinstance(text, Html):
        return text
    return Html(html.escape(str(text).translate(_CONTROLS)))


def join(*children: object) -> Html:
    """Children one after the other: markup as it is, everything else escaped."""
    return Html("".join(escaped(child) for child in children))


def tag(name: str, /, *children: object, **attributes: str) -> Html:
    """An element. ``class_`` stands for the attribute ``class``, ``aria_label`` for aria-label."""
    shown = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escaped(value)}"'
        for key, value in attributes.items()
    )
    end = "" if name in _VOID else f"</{name}>"
    return Html(f"<{name}{shown}>{join(*children)}{end}")
