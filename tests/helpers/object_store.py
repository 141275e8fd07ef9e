"""An S3-compatible server of this machine (moto's), which processes reach by the usual variables of the environment."""

import logging
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import httpx


@contextmanager
def object_store() -> Iterator[str]:
    """Yields the URL of a bucket; one server a process, since clients keep the address they have begun with."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
    }
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    bucket = f"runs-{uuid.uuid4().hex[:8]}"
    httpx.put(f"http://{host}:{port}/{bucket}").raise_for_status()
    try:
        yield f"s3://{bucket}"
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        server.stop()
