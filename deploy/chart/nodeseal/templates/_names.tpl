{{- define "nodeseal.labels" -}}
app.kubernetes.io/name: nodeseal
app.kubernetes.io/part-of: nodeseal
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}
{{- define "nodeseal.image" -}}
{{- if .Values.image.name -}}
{{ .Values.image.name | quote }}
{{- else -}}
{{ printf "nodeseal:%s" .Chart.AppVersion | quote }}
{{- end -}}
{{- end -}}
