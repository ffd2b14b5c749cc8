"""What the server's workers count, on a port of its own.

MLflow has the same at /metrics, but with accounts only for an administrator, whose password Prometheus should not have.
"""

import sys
import threading

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.multiprocess import MultiProcessCollector

folder, host, port = sys.argv[1:]
registry = CollectorRegistry()
MultiProcessCollector(registry, path=folder)
start_http_server(int(port), addr=host, registry=registry)
threading.Event().wait()
