"""Chat templates rendered in a child process, one a process, started on first use.

The child (template_worker.py) holds the sandbox and the memory cap; the deadline is kept here: a
child that misses it is killed, and the next call starts a new one.
"""

from __future__ import annotations

import atexit
import json
import os
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from marlin.errors import MarlinError, ModelFormatError

DEADLINE: Final = 2.0  # seconds of one rendering
START_DEADLINE: Final = 30.0  # seconds until the child is up
TEMPLATE_BYTES: Final = 1 << 20
ANSWER_BYTES: Final = 64 << 20

_KEPT_VARIABLES: Final = ("PATH", "LD_LIBRARY_PATH", "PYTHONHOME", "SYSTEMROOT", "TZ", "LANG")


class TemplateWorker:
    """One child process. Calls take turns; `restarts` counts the children that had to be
    replaced."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._pid = 0
        self._ready = False
        self.restarts = 0

    def start(self) -> None:
        """Start the child without waiting for it, so that its 0.1 s overlap with other work."""
        with self._lock:
            self._start_locked()

    def close(self) -> None:
        """End the child; a later call starts another."""
        with self._lock:
            self._stop_locked()

    def render(self, template: str, variables: Mapping[str, Any], deadline: float = DEADLINE) -> str:
        """The text of a template. `variables` must be JSON values.

        Raises ValueError when the template refuses the messages (its own words), ModelFormatError
        when it is broken, reaches outside the sandbox, or exceeds `deadline` seconds or its memory.
        """
        if len(template) > TEMPLATE_BYTES:
            raise ModelFormatError(f"chat template: longer than {TEMPLATE_BYTES} characters")
        try:
            request = json.dumps({"template": template, "variables": dict(variables)}).encode() + b"\n"
        except TypeError as error:
            raise TypeError(f"chat template: messages must be JSON values: {error}") from None
        except RecursionError:
            raise ValueError("chat template: messages are nested too deeply") from None
        with self._lock:
            self._start_locked()
            if not self._ready:
                if self._exchange_locked(b"", START_DEADLINE) != b"ready":
                    raise MarlinError("chat template: the rendering process did not start")
                self._ready = True
            answer = json.loads(self._exchange_locked(request, deadline))
        if "text" in answer:
            text: str = answer["text"]
            return text
        if answer["error"] == "raised":
            raise ValueError(f"chat template: {answer['message']}")
        raise ModelFormatError(f"chat template: {answer['error']}: {answer['message']}")

    def _start_locked(self) -> None:
        if self._process is not None and self._pid != os.getpid():
            self._process = None  # after a fork the child belongs to the parent
        if self._process is not None and self._process.poll() is None:
            return
        if self._process is not None:
            self._stop_locked()
            self.restarts += 1
        # By path, not with -m: the child must not import marlin, whose libraries would fill its
        # memory cap, and -P keeps the current folder from shadowing jinja2.
        command = [sys.executable, "-P", str(Path(__file__).with_name("template_worker.py"))]
        environment = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
        environment["PYTHONPATH"] = os.pathsep.join(entry for entry in sys.path if entry)
        environment["PYTHONIOENCODING"] = "utf-8"
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
                bufsize=0,
            )
        except OSError as error:
            raise MarlinError(f"chat template: cannot start {sys.executable}: {error}") from error
        assert self._process.stdin is not None and self._process.stdout is not None
        os.set_blocking(self._process.stdin.fileno(), False)
        os.set_blocking(self._process.stdout.fileno(), False)
        self._pid, self._ready = os.getpid(), False

    def _stop_locked(self) -> None:
        process, self._process = self._process, None
        if process is None or self._pid != os.getpid():
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()

    def _exchange_locked(self, request: bytes, seconds: float) -> bytes:
        """Write a request, read a line. Whatever goes wrong, the child is ended."""
        try:
            return self._talk_locked(memoryview(request), time.monotonic() + seconds, seconds)
        except BaseException:
            self._stop_locked()
            self.restarts += 1
            raise

    def _talk_locked(self, unsent: memoryview, end: float, seconds: float) -> bytes:
        assert self._process is not None
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        received = bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            if unsent:
                selector.register(stdin, selectors.EVENT_WRITE)
            while not received.endswith(b"\n"):
                left = end - time.monotonic()
                if left <= 0:
                    raise ModelFormatError(f"chat template: took longer than {seconds:g} s")
                for key, _ in selector.select(left):
                    if key.fileobj is stdin:
                        try:
                            unsent = unsent[os.write(stdin.fileno(), unsent[: 1 << 16]) :]
                        except BrokenPipeError:
                            raise ModelFormatError("chat template: the rendering process died") from None
                        if not unsent:
                            selector.unregister(stdin)
                    else:
                        data = os.read(stdout.fileno(), 1 << 20)
                        if not data:
                            raise ModelFormatError("chat template: the rendering process died (memory or time used up)")
                        received += data
                        if len(received) > ANSWER_BYTES:
                            raise ModelFormatError("chat template: the rendered text is too long")
        return bytes(received[:-1])


worker: Final = TemplateWorker()
atexit.register(worker.close)
