"""Signed addresses of pictures: a reverse-image service must fetch one, and cannot send the bearer
token.
"""

from __future__ import annotations

import hashlib
import hmac


def picture_path(sha256: str, token: str | None) -> str:
    """Path of a picture, without camera data or place, that whoever knows it may fetch, and with it
    nothing else.
    """
    path = f'/images/{sha256}?bare=true'
    return path if token is None else f'{path}&signature={_signature(sha256, token)}'


def is_signed(sha256: str, signature: str, token: str) -> bool:
    """Whether a signature is this server's for that picture.

    Args:
        sha256: of the picture.
        signature: as it came with the request.
        token: the server's.
    """
    return hmac.compare_digest(signature.encode(), _signature(sha256, token).encode())


def _signature(sha256: str, token: str) -> str:
    return hmac.new(token.encode(), f'picture {sha256}'.encode(), hashlib.sha256).hexdigest()
