# The MLflow tracking server with accounts, PostgreSQL and S3. cluster/scripts/build-images.sh builds it.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS libraries
# In the folder that is copied: the check can be run again in any container. setuptools comes with venv, nothing needs it.
WORKDIR /opt/mlflow/share
COPY constraints.txt cluster/docker/mlflow-requirements.txt cluster/docker/check_image.py ./
ARG PYTHON_VERSION MLFLOW_VERSION
RUN python3 -m venv /opt/mlflow \
    && /opt/mlflow/bin/pip install --no-cache-dir -c constraints.txt -r mlflow-requirements.txt \
    && /opt/mlflow/bin/pip uninstall --yes --quiet setuptools \
    && /opt/mlflow/bin/python check_image.py mlflow "python==$PYTHON_VERSION" "mlflow==$MLFLOW_VERSION"

FROM ${BASE} AS mlflow
RUN useradd --no-log-init --uid 10001 --user-group --create-home mlflow
COPY --from=libraries /opt/mlflow /opt/mlflow
# The root file system can be read-only: all that the server writes beside its database lies in /tmp.
# git is not here, and MLflow need not say so each time.
ENV PATH=/opt/mlflow/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    MPLCONFIGDIR=/tmp/matplotlib \
    GIT_PYTHON_REFRESH=quiet \
    MLFLOW_DISABLE_TELEMETRY=true
WORKDIR /tmp
USER 10001:10001
EXPOSE 5000
# /health asks for no account.
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:5000/health', timeout=4)"]
# It refuses to start without MLFLOW_FLASK_SERVER_SECRET_KEY and, the first time, MLFLOW_AUTH_ADMIN_PASSWORD.
CMD ["mlflow", "server", "--host", "0.0.0.0", "--port", "5000", "--app-name", "basic-auth"]
