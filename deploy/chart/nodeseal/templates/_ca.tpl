{{- define "nodeseal.caConfiguration" -}}
kubernetes:
  trust_domain: {{ .Values.trustDomain | quote }}
  namespace: {{ .Release.Namespace | quote }}
  secret: {{ .Values.ca.secret | quote }}
  make: {{ .Values.ca.make }}
  root_secret: {{ printf "%s-root" .Values.ca.secret | quote }}
listen:
  - "[::]:15018"
certificate_lifetime: {{ .Values.ca.certificateLifetime | quote }}
{{- end -}}
