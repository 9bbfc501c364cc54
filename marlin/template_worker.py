"""The child process that renders chat templates; it reads requests from stdin until that closes.

A template is a program from a stranger, so it runs here: in Jinja2's immutable sandbox, under a cap
on memory and a timer that ends the process. A line of JSON in, a line out:
  {"template": source, "variables": {...}}  ->  {"text": rendered} | {"error": kind, "message":
text} Kinds: "raised" (the template refused the messages), "syntax", "memory", "failed".
marlin/templates.py starts this file by its path, so the child imports jinja2 and nothing of Marlin.
"""

from __future__ import annotations

import functools
import json
import signal
import sys
from datetime import datetime
from typing import Any, Final

import jinja2
import jinja2.ext
import jinja2.sandbox

MEMORY: Final = 512 << 20  # bytes that rendering may add to the process
LINE: Final = 64 << 20  # bytes of a request
SECONDS: Final = 3.0  # the parent's deadline is shorter; this one holds if the parent is gone


class Refused(jinja2.TemplateError):
    """raise_exception() was called: the template does not accept these messages."""


class Generation(jinja2.ext.Extension):
    """{% generation %} marks what the assistant said, for training; here it is only its content."""

    tags: Final = {"generation"}  # type: ignore[misc]

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _refuse(message: str) -> None:
    raise Refused(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """json.dumps without HTML escapes, as templates for chat expect (Jinja2's own filter
    escapes)."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def make_environment() -> jinja2.Environment:
    """The sandbox with the names that published chat templates use (transformers'
    chat_template_utils)."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


@functools.lru_cache(maxsize=8)
def _compiled(source: str) -> jinja2.Template:
    return make_environment().from_string(source)


def render(request: bytes) -> dict[str, str]:
    """Answer one request; every failure is an answer too."""
    try:
        fields = json.loads(request)
        return {"text": _compiled(fields["template"]).render(**fields["variables"])}
    except Refused as error:
        return {"error": "raised", "message": str(error)[:2000]}
    except jinja2.TemplateSyntaxError as error:
        return {"error": "syntax", "message": f"line {error.lineno}: {error.message}"[:2000]}
    except MemoryError:
        return {"error": "memory", "message": f"needed more than {MEMORY >> 20} MiB"}
    except Exception as error:  # anything a template can cause, SecurityError and RecursionError included
        return {"error": "failed", "message": f"{type(error).__name__}: {error}"[:2000]}


def _cap_memory() -> None:
    try:
        import resource

        with open("/proc/self/statm", encoding="ascii") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
    except (ImportError, OSError):  # not Linux: the deadline alone holds
        return
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main() -> None:
    """Serve requests; a request that runs too long ends the process by SIGALRM."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is for the parent
    _cap_memory()
    out = sys.stdout.buffer
    out.write(b"ready\n")
    out.flush()
    while request := sys.stdin.buffer.readline(LINE):
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        answer = render(request)
        try:
            line = json.dumps(answer).encode()
        except MemoryError:
            line = json.dumps({"error": "memory", "message": "the rendered text is too long"}).encode()
        del answer
        signal.setitimer(signal.ITIMER_REAL, 0)
        out.write(line + b"\n")
        out.flush()


if __name__ == "__main__":
    main()
