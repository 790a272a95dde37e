"""The picture in an upload, sent as it is or as a file of a form."""

from __future__ import annotations

from starlette.datastructures import UploadFile
from starlette.requests import ClientDisconnect, Request

from tools_server.failures import ToolError

FIELDS = 20  # of a form, beside its file


async def sent_picture(request: Request) -> bytes | bytearray:
    """The body of a request, or the file in it.

    A type is asked for because a page in a browser may send one of three types anywhere without
    being allowed to; of these only a form is taken, whose origin the middleware has checked.

    Raises:
        ToolError: 'caller'; another type than a picture's, no file in the form, or the caller left.
    """
    kind = request.headers.get('content-type', '').partition(';')[0].strip().lower()
    try:
        if kind == 'multipart/form-data':
            async with request.form(max_files=1, max_fields=FIELDS) as form:
                for value in form.values():
                    if isinstance(value, UploadFile):
                        return await value.read()
            raise ToolError('caller', 'the form holds no file; send the image as one')
        if kind == 'application/octet-stream' or kind.startswith('image/'):
            data = bytearray()
            async for part in request.stream():
                data += part
            return data
    except ClientDisconnect:
        raise ToolError('caller', 'the caller left before the image was sent') from None
    sent = f'not {kind[:60]!r}' if kind else 'but the request has none'
    raise ToolError(
        'caller',
        f"send an image with 'Content-Type: application/octet-stream' or its own type, or in a form, {sent}",
        415,
    )
