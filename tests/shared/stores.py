"""Object stores that speak the protocols of S3 and of Google, on this machine and without a bucket."""

import contextlib
from collections.abc import Iterator

import toy_runs


@contextlib.contextmanager
def s3() -> Iterator[dict[str, str]]:
    """A store that speaks S3; the environment variables by which it is found."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address='127.0.0.1', port=0, verbose=False)
    server.start()
    yield {
        'AWS_ENDPOINT_URL': 'http://{}:{}'.format(*server.get_host_and_port()),
        'AWS_ACCESS_KEY_ID': 'any',
        'AWS_SECRET_ACCESS_KEY': 'any',
        'AWS_DEFAULT_REGION': 'us-east-1',
    }
    server.stop()


@contextlib.contextmanager
def gs() -> Iterator[dict[str, str]]:
    """A store that speaks Google's protocol; the environment variables by which it is found."""
    from gcp_storage_emulator.server import create_server

    port = int(toy_runs.free_address().rpartition(':')[2])
    with create_server('127.0.0.1', port, in_memory=True):
        yield {
            'STORAGE_EMULATOR_HOST': f'http://127.0.0.1:{port}',
            'GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT': 'false',  # would ask for credentials
        }


STORES = {'s3': s3, 'gs': gs}
"""The stores by the schemes of their addresses."""
