"""The part of Go's templates that the chart is written in, so that it can be rendered without Helm. Pure.

https://pkg.go.dev/text/template and Helm's functions are what this follows, in so far as the chart needs it:

    {{ .Values.a.b }}  {{ .Release.Namespace | quote }}  {{- include "name" . | nindent 4 -}}
    {{ if ... }} {{ else if ... }} {{ else }} {{ end }}  {{ define "name" }} {{ end }}  {{/* a comment */}}

and the functions in FUNCTIONS. There are no variables, no loops, and the dot is always the whole. What is not known is
an error, and so is a field that is not there: a chart that goes beyond this fails its tests.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_ACTION = re.compile(r"\{\{(-\s)?\s*(/\*.*?\*/|(?:\"(?:[^\"\\]|\\.)*\"|.)*?)\s*(\s-)?\}\}", re.DOTALL)
_TOKEN = re.compile(
    r"\s+|(?P<text>\"(?:[^\"\\]|\\.)*\")|(?P<number>-?[0-9]+)|(?P<field>(?:\.[A-Za-z][A-Za-z0-9]*)+)|(?P<dot>\.)"
    r"|(?P<word>[a-z][A-Za-z0-9]*)|(?P<sign>[()|])"
)


class TemplateError(Exception):
    """A template says something that is not understood here; one line."""


@dataclass(frozen=True, slots=True)
class _Text:
    text: str


@dataclass(frozen=True, slots=True)
class _Constant:
    value: Any


@dataclass(frozen=True, slots=True)
class _Field:
    """() is the dot itself."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Call:
    function: str
    arguments: tuple[_Constant | _Field | _Call, ...]


_Expression = _Constant | _Field | _Call


@dataclass(frozen=True, slots=True)
class _Output:
    expression: _Expression


@dataclass(frozen=True, slots=True)
class _If:
    """The first branch whose condition is true; `else` is one that always is."""

    branches: tuple[tuple[_Expression, tuple[_Part, ...]], ...]


_Part = _Text | _Output | _If


class Templates:
    """Files that know each other's definitions."""

    def __init__(self, files: Mapping[str, str], to_yaml: Callable[[Any], str]) -> None:
        """Name -> text. Raises TemplateError."""
        self._defined: dict[str, tuple[_Part, ...]] = {}
        self._to_yaml = to_yaml
        self._files = {name: _Parser(name, text, self._defined).whole() for name, text in files.items()}

    def render(self, name: str, dot: Mapping[str, Any]) -> str:
        """One file. Raises TemplateError."""
        try:
            return self._rendered(self._files[name], dot)
        except TemplateError as error:
            raise TemplateError(f"{name}: {error}") from None

    def _rendered(self, parts: tuple[_Part, ...], dot: Mapping[str, Any]) -> str:
        return "".join(self._pieces(parts, dot))

    def _pieces(self, parts: tuple[_Part, ...], dot: Mapping[str, Any]) -> Iterator[str]:
        for part in parts:
            match part:
                case _Text():
                    yield part.text
                case _Output():
                    yield _shown(self._value(part.expression, dot))
                case _If():
                    for condition, inner in part.branches:
                        if self._value(condition, dot):
                            yield self._rendered(inner, dot)
                            break

    def _value(self, expression: _Expression, dot: Mapping[str, Any]) -> Any:
        match expression:
            case _Constant():
                return expression.value
            case _Field():
                value: Any = dot
                for name in expression.names:
                    if not isinstance(value, Mapping) or name not in value:
                        raise TemplateError(f"there is no .{'.'.join(expression.names)}")
                    value = value[name]
                return value
            case _Call():
                return self._called(expression.function, [self._value(one, dot) for one in expression.arguments])

    def _called(self, function: str, arguments: list[Any]) -> Any:
        if function == "include" and len(arguments) == 2:
            name, dot = arguments
            if name not in self._defined:
                raise TemplateError(f'there is no definition "{name}"')
            return self._rendered(self._defined[name], dot)
        if function == "toYaml" and len(arguments) == 1:
            return self._to_yaml(arguments[0])
        known = FUNCTIONS.get(function)
        if known is None:
            raise TemplateError(f"the function {function} is not known, or has another number of arguments")
        return known(*arguments)


def _quote(value: Any) -> str:
    return json.dumps(_shown(value), ensure_ascii=False)


def _json(value: Any) -> str:
    """As Go has it: keys in their order, and no character that HTML knows."""
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _printf(form: str, *arguments: Any) -> str:
    if form.count("%") != form.count("%s") or form.count("%s") != len(arguments):
        raise TemplateError(f'printf knows %s alone, one for each argument: "{form}"')
    return form.replace("%s", "{}").format(*map(_shown, arguments))


FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "nindent": lambda spaces, text: "\n" + "\n".join(" " * spaces + line for line in text.split("\n")),
    "printf": _printf,
    "quote": _quote,
    "sha256sum": lambda text: hashlib.sha256(text.encode()).hexdigest(),
    "toJson": _json,
}
"""Beside `include` and `toYaml`."""


def _shown(value: Any) -> str:
    match value:
        case bool():
            return str(value).lower()
        case str() | int():
            return str(value)
        case float():
            return f"{value:.12g}"
    raise TemplateError(f"a text or a number is needed, and {type(value).__name__} is there")


class _Parser:
    """One file."""

    def __init__(self, name: str, text: str, defined: dict[str, tuple[_Part, ...]]) -> None:
        self._name = name
        self._defined = defined
        self._items = list(_items(text))
        self._next = 0

    def whole(self) -> tuple[_Part, ...]:
        try:
            parts, end = self._parts()
            if end is not None:
                raise TemplateError(f"{{{{ {end} }}}} ends nothing")
        except TemplateError as error:
            raise TemplateError(f"{self._name}: {error}") from None
        return parts

    def _parts(self) -> tuple[tuple[_Part, ...], str | None]:
        """Up to an `end` or `else`, and that."""
        found: list[_Part] = []
        while self._next < len(self._items):
            kind, text = self._items[self._next]
            self._next += 1
            word, _, rest = text.partition(" ")
            if kind == "text":
                found.append(_Text(text))
            elif word in ("end", "else"):
                return tuple(found), text
            elif word == "if":
                found.append(self._if(rest))
            elif word == "define":
                self._defined[json.loads(rest)] = self._until_end()
            elif not text.startswith("/*"):
                found.append(_Output(_expression(text)))
        return tuple(found), None

    def _until_end(self) -> tuple[_Part, ...]:
        parts, end = self._parts()
        if end != "end":
            raise TemplateError("an {{ end }} is missing")
        return parts

    def _if(self, condition: str) -> _If:
        branches = []
        while True:
            parts, end = self._parts()
            branches.append((_expression(condition), parts))
            if end == "end":
                return _If(tuple(branches))
            if end == "else":
                return _If((*branches, (_Constant(True), self._until_end())))
            if end is None or not end.startswith("else if "):
                raise TemplateError("an {{ end }} is missing")
            condition = end.removeprefix("else if ")


def _items(text: str) -> Iterator[tuple[str, str]]:
    """("text", what stands between) and ("action", what is inside), with the white space taken that markers take."""
    position, trim = 0, False
    for found in _ACTION.finditer(text):
        before = text[position : found.start()]
        before = before.lstrip() if trim else before
        yield "text", before.rstrip() if found[1] else before
        yield "action", found[2]
        position, trim = found.end(), found[3] is not None
    rest = text[position:]
    yield "text", rest.lstrip() if trim else rest


def _expression(text: str) -> _Expression:
    """A pipeline."""
    tokens: list[tuple[str, str]] = []
    position = 0
    while position < len(text):
        found = _TOKEN.match(text, position)
        if found is None:
            raise TemplateError(f"{text!r} is not understood from {text[position:]!r}")
        if found.lastgroup is not None:
            tokens.append((found.lastgroup, found[0]))
        position = found.end()
    expression = _pipeline(tokens)
    if tokens:
        raise TemplateError(f"{text!r} is not understood from {tokens[0][1]!r}")
    return expression


def _pipeline(tokens: list[tuple[str, str]]) -> _Expression:
    value = _command(tokens, ())
    while tokens[:1] == [("sign", "|")]:
        del tokens[0]
        value = _command(tokens, (value,))
    return value


def _command(tokens: list[tuple[str, str]], piped: tuple[_Expression, ...]) -> _Expression:
    """`piped` comes behind the other arguments."""
    if tokens[:1] and tokens[0][0] == "word" and tokens[0][1] not in ("true", "false"):
        function = tokens.pop(0)[1]
        arguments: list[_Expression] = []
        while tokens and tokens[0] not in (("sign", "|"), ("sign", ")")):
            arguments.append(_operand(tokens))
        return _Call(function, (*arguments, *piped))
    if piped:
        raise TemplateError("a function is needed behind a |")
    return _operand(tokens)


def _operand(tokens: list[tuple[str, str]]) -> _Expression:
    kind, text = tokens.pop(0) if tokens else ("", "its end")
    match kind:
        case "text" | "number":
            return _Constant(json.loads(text))
        case "field":
            return _Field(tuple(text[1:].split(".")))
        case "dot":
            return _Field(())
        case "word" if text in ("true", "false"):
            return _Constant(text == "true")
        case "word":
            return _Call(text, ())
        case "sign" if text == "(":
            inner = _pipeline(tokens)
            if tokens[:1] != [("sign", ")")]:
                raise TemplateError("a ) is missing")
            del tokens[0]
            return inner
    raise TemplateError(f"a value is needed, and {text} is there")
