# A small image with the runtime, the server and one model folder: docs/deploying.md.
#
#   docker build --build-arg MODEL=models/gpt2-int8 --tag gpt2-edge .

FROM python:3.13-slim AS wheels
WORKDIR /clone
COPY LICENSE pyproject.toml ./
COPY runtime runtime
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels . ./runtime/server

FROM python:3.13-slim
RUN --mount=type=bind,from=wheels,source=/wheels,target=/wheels \
    pip install --no-cache-dir --root-user-action ignore /wheels/*.whl
ARG MODEL=models/demo-int8
COPY ${MODEL} /${MODEL}
ENV GPT2_EDGE_MODEL=/${MODEL}
# No user of the system: nothing in the image is theirs to write.
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --start-period=30s CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health', timeout=5)"]
ENTRYPOINT ["gpt2-edge"]
# An address that others reach wants a key, in GPT2_EDGE_API_KEY.
CMD ["serve", "--host", "0.0.0.0"]
