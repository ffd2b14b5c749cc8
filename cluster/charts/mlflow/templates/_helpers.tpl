{{- define "mlflow.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "mlflow.labels" -}}
{{ include "mlflow.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: rayapp
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "mlflow.image" -}}
{{ required "image.repository is empty: REGISTRY/rayapp-mlflow" .Values.image.repository }}:
{{- .Values.image.tag | default (printf "%s-mlflow%s" .Chart.Version .Chart.AppVersion) }}
{{- end }}

{{/* Host, user and password stand in a service file, see externalsecrets.yaml. */}}
{{- define "mlflow.databaseUri" -}}
postgresql+psycopg2:///?service=mlflow
{{- end }}

{{/* Matched with the port. A list given to MLflow replaces its own, so it has all names by which clients call. */}}
{{- define "mlflow.allowedHosts" -}}
{{- $name := .Release.Name }}
{{- $service := printf "%s.%s" $name .Release.Namespace }}
{{- $hosts := list (printf "%s:5000" $name) (printf "%s:5000" $service) }}
{{- $hosts = concat $hosts (list (printf "%s.svc:5000" $service) (printf "%s.svc.cluster.local:5000" $service)) }}
{{- if .Values.ingress.enabled }}{{ $hosts = append $hosts (include "mlflow.host" .) }}{{ end }}
{{- join "," (concat $hosts .Values.server.allowedHosts) }}
{{- end }}

{{- define "mlflow.host" -}}
{{ required "ingress.host is empty: mlflow.DOMAIN" .Values.ingress.host }}
{{- end }}

{{- define "mlflow.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "mlflow.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* Of all that talk to the database. */}}
{{- define "mlflow.environment" -}}
- {name: MLFLOW_BACKEND_STORE_URI, value: {{ include "mlflow.databaseUri" . | quote }}}
- {name: PGSERVICEFILE, value: /etc/mlflow/database/pg_service.conf}
- {name: MLFLOW_AUTH_CONFIG_PATH, value: /etc/mlflow/config/basic_auth.ini}
- {name: MLFLOW_DISABLE_TELEMETRY, value: "true"}
- {name: MLFLOW_SERVER_ENABLE_JOB_EXECUTION, value: "false"}  # eight more processes of 230 MB, for judges of language models
- {name: MLFLOW_SQLALCHEMYSTORE_POOL_SIZE, value: {{ .Values.database.poolSize | quote }}}
- {name: MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW, value: {{ .Values.database.maxOverflow | quote }}}
- name: MLFLOW_AUTH_ADMIN_USERNAME
  valueFrom: {secretKeyRef: {name: {{ .Release.Name }}-auth, key: admin_username}}
{{- end }}

{{- define "mlflow.mounts" -}}
- {name: scratch, mountPath: /tmp}
- {name: config, mountPath: /etc/mlflow/config, readOnly: true}
- {name: database, mountPath: /etc/mlflow/database, readOnly: true}
{{- if .Values.database.caConfigMap }}
- {name: database-ca, mountPath: /etc/mlflow/ca, readOnly: true}
{{- end }}
{{- end }}

{{/* The Secret is mounted as a folder, not with subPath: so its file changes when the password does. */}}
{{- define "mlflow.volumes" -}}
- name: scratch
  emptyDir: {sizeLimit: {{ .Values.scratch }}}
- name: config
  configMap: {name: {{ .Release.Name }}-config}
- name: database
  secret:
    secretName: {{ .Release.Name }}-database
    defaultMode: 0440
    items:
      - {key: pg_service.conf, path: pg_service.conf}
{{- if .Values.database.caConfigMap }}
- name: database-ca
  configMap: {name: {{ .Values.database.caConfigMap }}}
{{- end }}
{{- end }}
