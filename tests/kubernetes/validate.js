// Holds a ServiceMonitor, JSON on stdin, to the schema of the Prometheus operator; an error if it does not fit.
import { readFileSync } from "node:fs";
import { ServiceMonitor } from "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1/ServiceMonitor";

new ServiceMonitor(JSON.parse(readFileSync(0, "utf8"))).validate();
