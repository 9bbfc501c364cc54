"""`marlin run` and `marlin chat`: text from a model."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from marlin.cli import options, show
from marlin.cli.process import seconds_since_start

if TYPE_CHECKING:
    from marlin.generate import Generation
    from marlin.model import Model, Stream


def run(
    ctx: typer.Context,
    model: options.ModelName,
    prompt: Annotated[
        str,
        typer.Argument(metavar="PROMPT", help='The text to continue; "-" reads standard input.'),
    ],
    max_tokens: options.MaxTokens = 256,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    min_p: options.MinP = None,
    seed: options.Seed = None,
    greedy: options.Greedy = False,
    stop: options.Stop = None,
    echo: Annotated[bool, typer.Option("--echo", help="Print the prompt first.")] = False,
    format: options.Format = None,
    dtype: options.Dtype = "f16",
    context: options.Context = None,
    device: options.Device = None,
    stats: Annotated[bool, typer.Option(help="Device and speed on standard error.")] = True,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Continue a prompt; the text streams to standard output.

    Example: marlin run models/tale-moe "Once upon a time" --seed 1
    """
    chosen = options.temperature_of(temperature, greedy)
    text = _prompt(prompt)
    import marlin as ml

    with ml.Model.load(model, format=format, dtype=dtype, context=context, device=device, slots=1) as loaded:
        stream = loaded.stream(
            text,
            max_tokens=max_tokens,
            temperature=chosen,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            seed=seed,
            stop=stop or None,
        )
        started = seconds_since_start()
        if echo and not json:
            _write(text)
        interrupted = _pour(stream, not json)
        result = stream.result
        facts = _facts(loaded, result, ctx.obj.command, started)
    if json:
        show.print_json({"text": (text if echo else "") + result.text, **facts})
    elif stats:
        print(_summary(facts), f"$ {facts['command']}", sep="\n", file=sys.stderr)
    if interrupted:
        raise typer.Exit(130)


def chat(
    ctx: typer.Context,
    model: options.ModelName,
    system: Annotated[str | None, typer.Option(help="What the model is told first.")] = None,
    max_tokens: options.MaxTokens = 512,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    min_p: options.MinP = None,
    seed: options.Seed = None,
    greedy: options.Greedy = False,
    stop: options.Stop = None,
    format: options.Format = None,
    dtype: options.Dtype = "f16",
    context: options.Context = None,
    device: options.Device = None,
    stats: Annotated[bool, typer.Option(help="Speed of each answer on standard error.")] = False,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Talk to a model, one message a line.

    /reset forgets what was said, /save FILE writes the messages, /quit ends.

    Ctrl-C stops an answer, at the prompt it ends. Piped input is answered line by line;
    --json prints one line of JSON for each answer.

    Example: marlin chat models/tale-moe --system "You tell short tales."
    """
    chosen = options.temperature_of(temperature, greedy)
    import marlin as ml

    with ml.Model.load(model, format=format, dtype=dtype, context=context, device=device, slots=1) as loaded:
        sampling = ml.SamplingParams(
            max_tokens=max_tokens,
            temperature=chosen,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            seed=seed,
            stop=stop or (),
        )
        loaded.chat_ids([{"role": "user", "content": "?"}])  # refuses a model without a template
        talk = Talk(loaded, sampling, system, stats, json)
        if talk.interactive:
            print(f"{loaded.name} on {loaded.device.name}. {Talk.COMMANDS}", file=sys.stderr)
        while (line := talk.read()) is not None and talk.answer(line):
            pass


class Talk:
    """A conversation at a terminal, or with the lines of a pipe."""

    COMMANDS = "Commands: /reset, /save FILE, /quit."

    def __init__(self, model: Model, sampling: Any, system: str | None, stats: bool, json: bool) -> None:
        self.model, self.sampling, self.stats, self.json = model, sampling, stats, json
        self.opening = [{"role": "system", "content": system}] if system else []
        self.messages = list(self.opening)
        self.interactive = sys.stdin.isatty()
        if self.interactive:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401  input() has a history with it

    def read(self) -> str | None:
        """The next line, or None at the end."""
        try:
            return input("> " if self.interactive and not self.json else "")
        except EOFError:
            return None

    def answer(self, line: str) -> bool:
        """Do what a line says; False when it says to end."""
        word, _, rest = line.strip().partition(" ")
        if word == "/quit":
            return False
        if word == "/reset":
            self.messages = list(self.opening)
        elif word == "/save":
            self._save(rest.strip())
        elif word.startswith("/"):
            self._complain(f"no command {show.clean(word)}. {self.COMMANDS}")
        elif word:
            self._say(line)
        return True

    def _say(self, line: str) -> None:
        asked = [*self.messages, {"role": "user", "content": line}]
        try:
            stream = self.model.chat(asked, self.sampling, stream=True)
        except ValueError as error:
            self._complain(f"{error}; /reset starts anew")
            return
        interrupted = _pour(stream, not self.json)
        result = stream.result
        self.messages = [*asked, {"role": "assistant", "content": result.text}]
        facts = _facts(self.model, result)
        if self.json:
            print(json.dumps({"text": result.text, **facts}, ensure_ascii=False), flush=True)
        elif self.stats:
            print(_summary(facts), file=sys.stderr)
        if interrupted and not self.interactive:
            raise KeyboardInterrupt

    def _save(self, path: str) -> None:
        if not path:
            self._complain("/save needs the name of a file")
            return
        saved = {"model": self.model.name, "messages": self.messages}
        try:
            Path(path).expanduser().write_text(json.dumps(saved, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            self._complain(f"{path}: {error.strerror}")
        else:
            print(f"wrote {path}", file=sys.stderr)

    def _complain(self, text: str) -> None:
        """Tell a person; end where nobody is there to do it better."""
        from marlin.errors import MarlinError

        if not self.interactive:
            raise MarlinError(text)
        print(f"marlin: {text}", file=sys.stderr)


def _prompt(given: str) -> str:
    """The prompt, from standard input for "-": without its last line break, which `echo` adds."""
    if given != "-":
        return given
    data = sys.stdin.buffer.read()
    try:
        return data.decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"the prompt is not UTF-8 at byte {error.start}") from None


def _pour(stream: Stream, visible: bool) -> bool:
    """Print a stream as it comes, ended by a line break; True when Ctrl-C ended it."""
    last, interrupted = "", False
    try:
        for chunk in stream:
            if visible and chunk.text:
                _write(chunk.text)
                last = chunk.text
    except KeyboardInterrupt:
        interrupted = True
    finally:
        stream.close()
    if visible and not last.endswith("\n"):
        _write("\n")
    return interrupted


def _write(text: str) -> None:
    sys.stdout.write(show.terminal_text(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def _facts(
    model: Model, result: Generation, command: str | None = None, started: float | None = None
) -> dict[str, Any]:
    """What is told of a generation beside its text; `started`: seconds the process had run before."""
    stats = dataclasses.asdict(result.stats)
    facts: dict[str, Any] = {
        "finish_reason": result.finish_reason,
        "tokens": result.tokens,
        "prompt_tokens": len(result.prompt_tokens),
        "seed": result.seed,
        "tokens_per_s": result.stats.tokens_per_s,
        "first_token_s": result.stats.first_token_s,
        "stats": stats,
        "model": model.name,
        "format": model.memory.format,
        "device": model.device.name,
        "driver": model.device.info.driver,
    }
    if command is not None and started is not None:
        facts |= {
            "load_s": model.stats.load_s,
            "start_to_first_token_s": started + result.stats.first_token_s,
            "command": command,
        }
    return facts


def _summary(facts: dict[str, Any]) -> str:
    """The facts in a line for a person."""
    first = ""
    if facts["tokens"]:
        first = f"first token after {facts['first_token_s']:.2f} s"
        if "start_to_first_token_s" in facts:
            first += f" ({facts['start_to_first_token_s']:.2f} s after the start of the process)"
        first += ", "
    return (
        f"[{show.clean(facts['model'])} on {facts['device']}: {len(facts['tokens'])} tokens, "
        f"{facts['tokens_per_s']:.1f} tokens/s, {first}"
        f"ended by {facts['finish_reason']}, seed {facts['seed']}]"
    )
