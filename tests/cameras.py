"""A camera on the network, as many are: a small HTTP server that sends one JPEG after the other."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from typing import Any

import cv2
import numpy as np

PASSWORD = "no-business-of-others"


@contextmanager
def camera(*, num_frames: int | None = None, period_s: float = 0.02, ends: bool = True) -> Iterator[str]:
    """The address of one on loopback, with a password in it. Its picture says which it is: number n has the grey n.

    After ``num_frames`` it ends, or else falls silent.
    """
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
            self.end_headers()
            try:
                for number in count() if num_frames is None else range(num_frames):
                    jpeg = cv2.imencode(".jpg", np.full((48, 64, 3), number % 250, np.uint8))[1].tobytes()
                    self.wfile.write(b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(jpeg))
                    self.wfile.write(jpeg + b"\r\n")
                    if over.wait(period_s):
                        return
                if not ends:
                    over.wait(120)
            except OSError:
                return  # nobody watches any more

        def log_message(self, *_: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://someone:{PASSWORD}@127.0.0.1:{server.server_port}/cam.mjpg?token={PASSWORD}"
    finally:
        over.set()
        server.shutdown()
        thread.join()
        server.server_close()


def write_video(path: Any, frames: Any, *, code: str = "FFV1") -> None:
    """A video file of these frames (height, width, red green blue); FFV1 loses nothing, but for small roundings."""
    first = frames[0]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*code), 25, (first.shape[1], first.shape[0]))
    assert writer.isOpened()
    for frame in frames:
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    writer.release()
