"""A web application on a free port of this machine, for a browser."""

import contextlib
import threading

import uvicorn

from sensesearch_jax.runtime.loopback import address_of, listen


@contextlib.contextmanager
def served(app):
    """The application's address, as long as it is served."""
    listener = listen(0, 'port')
    server = uvicorn.Server(uvicorn.Config(app, log_level='warning'))
    thread = threading.Thread(target=server.run, kwargs={'sockets': [listener]})
    thread.start()
    try:
        yield address_of(listener)
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
