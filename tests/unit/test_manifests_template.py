"""Go's templates, as far as the chart needs them. What Helm makes of the same is compared in tests/kubernetes."""

from __future__ import annotations

import pytest

from nodeseal.documents.plain import to_yaml
from nodeseal.manifests.template import TemplateError, Templates

DOT = {"Values": {"a": "x", "no": False, "none": "", "empty": {}, "n": 3, "f": 1.5, "m": {"b": [1, "2"], "a": None}}}


def rendered(text: str, **others: str) -> str:
    return Templates({"it": text, **others}, to_yaml).render("it", DOT)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: {{ .Values.a }}\n", "a: x\n"),
        ("a:   {{- .Values.a -}}   \n\n b", "a:xb"),
        ("{{ .Values.a | quote }} {{ .Values.n }} {{ .Values.no }}", '"x" 3 false'),
        ('{{ printf "%s-%s" .Values.a (printf "%s" .Values.n) | quote }}', '"x-3"'),
        ("{{ if .Values.a }}yes{{ else }}no{{ end }}", "yes"),
        ("{{ if .Values.none }}1{{ else if .Values.empty }}2{{ else if .Values.n }}3{{ else }}4{{ end }}", "3"),
        ("{{ if .Values.no }}1{{ end }}", ""),
        ("{{ if .Values.a }}{{ if .Values.no }}1{{ else }}2{{ end }}3{{ end }}", "23"),
        ("m:\n  {{- toYaml .Values.m | nindent 2 }}\n", "m:\n  a: null\n  b:\n  - 1\n  - '2'\n"),
        ("{{- /* {{ what }} */ -}}\n x", "x"),
        ('{{ define "d" }}<{{ .Values.a }}>{{ end }}{{ include "d" . }}{{ include "d" . | quote }}', '<x>"<x>"'),
        ("{{ .Values.a | sha256sum }}", "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"),
        ("a - b {{- 1 }} c", "a - b1 c"),
        ("{{ .Values.f }} {{ .Values.m.b | toJson }}", '1.5 [1,"2"]'),
    ],
)
def test_template_is_rendered(text: str, expected: str) -> None:
    assert rendered(text) == expected


def test_definitions_of_another_file_are_known() -> None:
    assert rendered('{{ include "d" . }}', other='{{- define "d" -}} {{ .Values.a }} {{- end -}}') == "x"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("{{ .Values.b }}", "it: there is no .Values.b"),
        ("{{ .Values.a.b }}", "it: there is no .Values.a.b"),
        ("{{ .Values.m }}", "it: a text or a number is needed, and dict is there"),
        ("{{ lookup .Values.a }}", "it: the function lookup is not known, or has another number of arguments"),
        ('{{ include "d" . }}', 'it: there is no definition "d"'),
        ("{{ if .Values.a }}", "it: an {{ end }} is missing"),
        ("{{ end }}", "it: {{ end }} ends nothing"),
        ("{{ range .Values.m }}{{ end }}", "it: {{ end }} ends nothing"),
        ("{{ $x := 1 }}", "it: '$x := 1' is not understood from '$x := 1'"),
        ("{{ .Values.a .Values.a }}", "it: '.Values.a .Values.a' is not understood from '.Values.a'"),
        ("{{ .Values.a | .Values.a }}", "it: a function is needed behind a |"),
        ("{{ (.Values.a }}", "it: a ) is missing"),
        ('{{ printf "%d" 1 }}', 'it: printf knows %s alone, one for each argument: "%d"'),
    ],
)
def test_what_is_not_known_is_an_error(text: str, error: str) -> None:
    with pytest.raises(TemplateError) as raised:
        rendered(text)
    assert str(raised.value) == error
