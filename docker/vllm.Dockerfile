# vLLM with Entrogate's plugin: exact entropy, and the gate inside the engine (docs/engine.md).
# Build from the root of the repository:
#   docker build -f docker/vllm.Dockerfile -t entrogate-vllm .
FROM vllm/vllm-openai:v0.32.0
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
WORKDIR /src/entrogate
COPY pyproject.toml README.md LICENSE ./
COPY constraints constraints
COPY app/entrogate app/entrogate
COPY policies policies
# What vLLM brought along must stay as it is; for the rest, the first version named for a package counts.
RUN python3 -m pip list --format=freeze | cat - constraints/gateway.txt \
    | awk -F== '{ name = tolower($1); gsub(/[-_.]+/, "-", name) } !seen[name]++' > /tmp/constraints.txt \
    && python3 -m pip install --no-cache-dir --constraint /tmp/constraints.txt .
WORKDIR /vllm-workspace
# Other containers read the capture, encrypted: run it with ENTROGATE_ENGINE_SECRET, the same as the
# gateway's ENTROGATE_UPSTREAM__CAPTURE_SECRET. Without one nothing is captured.
ENV ENTROGATE_ENGINE_ADDRESS=tcp://0.0.0.0:57371
EXPOSE 8000 57371
HEALTHCHECK --interval=30s --timeout=5s --start-period=15m \
    CMD ["python3", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
