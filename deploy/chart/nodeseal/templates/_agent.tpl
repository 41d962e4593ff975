{{- define "nodeseal.agentConfiguration" -}}
# The same for all nodes; which one it is, the agent is told by NODESEAL_NODE.
mesh:
  kubernetes:
    trust_domain: {{ .Values.trustDomain | quote }}
    namespace: {{ .Release.Namespace | quote }}
ca:
  kubernetes: {{ printf "%s/nodeseal-ca" .Release.Namespace | quote }}
  trust_domain: {{ .Values.trustDomain | quote }}
run_dir: {{ .Values.agent.runDirectory | quote }}
hand_over: true
health_directory: /run/health
core:
  own_cgroup: true
  memory: {{ .Values.agent.core.memory | quote }}
  cpus: {{ .Values.agent.core.cpus }}
  image_directory: {{ printf "%s/image" .Values.agent.dataDirectory | quote }}
{{- if .Values.agent.cni.enabled }}
cni:
  config_directory: {{ .Values.agent.cni.configurationDirectory | quote }}
  binary_directory: {{ .Values.agent.cni.binaryDirectory | quote }}
  on_failure: {{ .Values.agent.cni.onFailure }}
  wait: {{ .Values.agent.cni.wait }}
  open_namespaces: {{ toJson .Values.agent.cni.openNamespaces }}
{{- end }}
{{- if .Values.agent.configuration }}
{{ toYaml .Values.agent.configuration }}
{{- end }}
{{- end -}}
{{- /*
The container has every capability, because only a privileged one may make mounts that reach the node. What runs in it
has these alone. docs/kubernetes-permissions.md says what each is for, and a test holds both together.
*/ -}}
{{- define "nodeseal.confined" -}}
- setpriv
- --no-new-privs
- --inh-caps=-all
- --bounding-set=-all,+dac_override,+ipc_lock,+mknod,+net_admin,+net_bind_service,+net_raw,+sys_admin,+sys_ptrace,+sys_resource
- --
{{- end -}}
{{- define "nodeseal.agentContainer" -}}
env:
  - name: NODESEAL_NODE
    valueFrom:
      fieldRef:
        fieldPath: spec.nodeName
  - name: NODESEAL_POD
    valueFrom:
      fieldRef:
        fieldPath: metadata.name
securityContext:
  privileged: true
  readOnlyRootFilesystem: true
resources:
  {{- toYaml .Values.agent.resources | nindent 2 }}
volumeMounts:
  - name: configuration
    mountPath: /etc/nodeseal
    readOnly: true
  - name: token
    mountPath: /var/run/secrets/nodeseal
    readOnly: true
  - name: tmp
    mountPath: /tmp
  - name: health
    mountPath: /run/health
  - name: run
    mountPath: {{ .Values.agent.runDirectory | quote }}
    mountPropagation: Bidirectional
  - name: nodes
    mountPath: /run/nodeseal-nodes
  - name: data
    mountPath: {{ .Values.agent.dataDirectory | quote }}
  - name: netns
    mountPath: /run/netns
    mountPropagation: HostToContainer
  - name: cgroup
    mountPath: /host/cgroup
    mountPropagation: HostToContainer
  - name: cni-configuration
    mountPath: {{ .Values.agent.cni.configurationDirectory | quote }}
  - name: cni-binaries
    mountPath: {{ .Values.agent.cni.binaryDirectory | quote }}
  - name: xtables-lock
    mountPath: /run/xtables.lock
{{- end -}}
