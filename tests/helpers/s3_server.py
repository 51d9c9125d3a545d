"""An S3 server of this machine, of the package moto. No test needs a network, or an account."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

SECRET = "a-secret-of-the-tests"
_BUCKET = "bucket"


@dataclass(frozen=True)
class S3Server:
    """A running server.

    Args:
        variables: of the environment, for a process that uses it.
        client: of boto3.
    """

    variables: Mapping[str, str]
    client: Any

    def url(self, name: str) -> str:
        return f"s3://{_BUCKET}/{name}"

    def names(self, folder: str) -> list[str]:
        """The names of the objects in a folder."""
        found = self.client.list_objects_v2(Bucket=_BUCKET, Prefix=f"{folder}/").get("Contents", [])
        return [one["Key"].removeprefix(f"{folder}/") for one in found]

    def upload(self, path: Path, name: str) -> str:
        """Upload a file, and return its URL."""
        self.client.upload_file(str(path), _BUCKET, name)
        return self.url(name)

    def download(self, folder: str, to: Path) -> Path:
        """Download a folder."""
        for name in self.names(folder):
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            self.client.download_file(_BUCKET, f"{folder}/{name}", str(to / name))
        return to


@contextmanager
def serving() -> Iterator[S3Server]:
    """A server for the time of the block, on a free port."""
    why = "a store on S3 needs s3fs, and a server of the package moto (pip install -e '.[test]')"
    pytest.importorskip("s3fs", reason=why)
    moto = pytest.importorskip("moto.server", reason=why)
    import boto3

    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    variables = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "key-of-the-tests",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    client = boto3.client(
        "s3",
        endpoint_url=variables["AWS_ENDPOINT_URL"],
        aws_access_key_id=variables["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=SECRET,
        region_name=variables["AWS_DEFAULT_REGION"],
    )
    client.create_bucket(Bucket=_BUCKET)
    try:
        yield S3Server(variables, client)
    finally:
        server.stop()
