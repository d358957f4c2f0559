"""`jfree explore`: sliders for a network, and its spectrum as they move, in a browser."""

import dataclasses
import os
import socket
import sys
import webbrowser
from pathlib import Path
from typing import Annotated, TYPE_CHECKING

from ._network import default

if TYPE_CHECKING:
    import uvicorn


@dataclasses.dataclass(frozen=True)
class ExploreCommand:
    """Opens a page with sliders for depth, widths and scales, of an MLP or of residual blocks, and the spectrum, mean
    field and phase diagram they give.

    It is served to this machine only, until Ctrl-C.
    """

    port: Annotated[int, default("any that is free")] = 0
    headless: bool = False
    """Open no browser, only print the address."""

    def run(self) -> None:
        with _listening(self.port) as listener:
            try:
                import marimo
                import uvicorn
                import zmq as zmq  # by marimo, for serving a page from this process
            except ImportError as error:
                raise ImportError("`jfree explore` needs marimo: pip install 'jfree[explore]'.") from error
            _compile_quickly()
            from ..explorer import _model

            address = f"http://127.0.0.1:{listener.getsockname()[1]}"
            print("Compiling, some seconds ...", flush=True)
            settings = _model.Settings()
            _model.picture(settings)
            _model.phases(settings.activation)
            page = Path(_model.__file__).with_name("page.py")
            app = marimo.create_asgi_app(quiet=True).with_app(path="/", root=str(page)).build()
            print(f"Open {address} - Ctrl-C ends it.", flush=True)
            if not self.headless:
                webbrowser.open(address)
            config = uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1)
            _serve(uvicorn.Server(config), listener)


def _serve(server: "uvicorn.Server", listener: socket.socket) -> None:
    """Ends the process: pages compute in threads, which the interpreter would wait for."""
    status = 0
    try:
        server.run(sockets=[listener])
    except KeyboardInterrupt:
        pass
    except SystemExit as stop:
        status = int(stop.code or 0)
    sys.stdout.flush()
    os._exit(status)


def _listening(port: int) -> socket.socket:
    """A socket at which a browser may knock already."""
    if not 0 <= port < 65536:
        raise ValueError(f"`port` must be from 0 to 65535, got {port}.")
    listener = socket.socket()
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen()
    except OSError as error:
        listener.close()
        raise ValueError(f"`port`: {port} cannot be listened at: {error.strerror}.") from error
    return listener


def _compile_quickly() -> None:
    """Much is compiled here and little is run: `explorer/_model.py` asks for more where it is run at every move."""
    flags = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
