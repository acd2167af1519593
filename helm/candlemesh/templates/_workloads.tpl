{{/* Name of the release's objects. */}}
{{- define "candlemesh.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Labels that tell the release's pods from all others. */}}
{{- define "candlemesh.releaseSelector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "candlemesh.releaseLabels" -}}
{{ include "candlemesh.releaseSelector" . }}
app.kubernetes.io/version: {{ default .Chart.AppVersion .Values.image.tag | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: candlemesh
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end -}}

{{/* Labels of one workload's pods; takes {root, workload}. Never changed: a Deployment's selector is immutable. */}}
{{- define "candlemesh.selector" -}}
{{ include "candlemesh.releaseSelector" .root }}
app.kubernetes.io/component: {{ .workload.role }}
{{- with .workload.engine }}
candlemesh.dev/engine: {{ . }}
{{- end }}
{{- end -}}

{{- define "candlemesh.labels" -}}
{{ include "candlemesh.releaseLabels" .root }}
app.kubernetes.io/component: {{ .workload.role }}
{{- with .workload.engine }}
candlemesh.dev/engine: {{ . }}
{{- end }}
{{- end -}}

{{/*
Every Deployment of the release: {name, role, engine, port, values, database, upstreams, callers}. `callers` are the
roles that may connect. Inside the mesh, roles read from the V1 engine of aggregation: what a V2 engine answers must not
depend on another V2 engine. Only the gateway knows both.
*/}}
{{- define "candlemesh.workloads" -}}
{{- $name := include "candlemesh.fullname" . -}}
{{- $ingestion := printf "http://%s-ingestion:7101" $name -}}
{{- $aggregation := printf "http://%s-aggregation-v1:7102" $name -}}
{{- $below := dict "INGESTION" $ingestion "AGGREGATION" $aggregation -}}
{{- $all := dict "INGESTION" $ingestion "OPTIMIZER" (printf "http://%s-optimizer:7105" $name) -}}
{{- range $role, $port := dict "aggregation" 7102 "indicator" 7103 "sequence" 7104 -}}
{{- $_ := set $all (upper $role) (printf "http://%s-%s-v1:%d" $name $role $port) -}}
{{- $_ := set $all (printf "%s_V2" (upper $role)) (printf "http://%s-%s-v2:%d" $name $role $port) -}}
{{- end -}}
{{- $list := list (dict "role" "ingestion" "port" 7101 "database" true "redis" true "values" .Values.ingestion
      "callers" (list "aggregation" "indicator" "sequence" "optimizer" "gateway")) -}}
{{- range $engine := list "v1" "v2" -}}
{{- $list = append $list (dict "role" "aggregation" "engine" $engine "port" 7102 "values" (get $.Values.aggregation $engine)
      "upstreams" (dict "INGESTION" $ingestion) "callers" (list "indicator" "sequence" "optimizer" "gateway")) -}}
{{- end -}}
{{- range $engine := list "v1" "v2" -}}
{{- $list = append $list (dict "role" "indicator" "engine" $engine "port" 7103 "redis" true
      "values" (get $.Values.indicator $engine) "upstreams" $below "callers" (list "sequence" "optimizer" "gateway")) -}}
{{- end -}}
{{- range $engine := list "v1" "v2" -}}
{{- $list = append $list (dict "role" "sequence" "engine" $engine "port" 7104 "database" true
      "values" (get $.Values.sequence $engine) "upstreams" $below "callers" (list "gateway")) -}}
{{- end -}}
{{- $list = append $list (dict "role" "optimizer" "port" 7105 "database" true "values" .Values.optimizer
      "upstreams" $below "callers" (list "gateway")) -}}
{{- $list = append $list (dict "role" "gateway" "port" 8080 "database" true "values" .Values.gateway "upstreams" $all) -}}
{{- range $workload := $list -}}
{{- $_ := set $workload "name" (join "-" (compact (list $name $workload.role (default "" $workload.engine)))) -}}
{{- end -}}
{{- toJson $list -}}
{{- end -}}
