"""`marlin bench` and `marlin perplexity`: speed and quality of a model."""

from __future__ import annotations

import json as json_module
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from marlin.cli import options, show
from marlin.cli.process import commit


def bench(
    ctx: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="Folder, hub name, or a config.json to measure its shapes with random weights.",
        ),
    ],
    prompt: Annotated[
        str, typer.Option("--prompt", "-p", help="Prompt lengths; 0 for none.", callback=options.counts)
    ] = "512",
    gen: Annotated[
        str, typer.Option("--gen", "-n", help="Tokens to draw; 0 for none.", callback=options.counts)
    ] = "128",
    depth: Annotated[str, typer.Option("--depth", "-d", help="Tokens before them.", callback=options.counts)] = "0",
    batch: Annotated[str, typer.Option("--batch", "-b", help="Sequences at once.", callback=options.counts)] = "1",
    repeat: Annotated[int, typer.Option("--repeat", "-r", min=1, help="Measurements a row.")] = 5,
    profile: Annotated[
        bool, typer.Option("--profile", help="Also the time by kernel of one decode step, and of a prefill.")
    ] = False,
    plot: options.Plot = None,
    format: options.Format = None,
    dtype: options.Dtype = "f16",
    device: options.Device = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Tokens a second of prefill (pp) and decode (tg), mean ± standard deviation.

    Lists are given as 512,1024. Rows are named as llama-bench names them: tg128 @ d4096.

    Example: marlin bench models/tale-moe -p 128 -n 32 -d 0,1024 --profile
    """
    prompts, gens = (tuple(n for n in options.numbers(text) if n) for text in (prompt, gen))
    depths, batches = options.numbers(depth), options.numbers(batch)
    if not prompts and not gens:
        raise typer.BadParameter("--prompt and --gen are both 0: nothing to measure")
    needed = max(depths) + max((*prompts, *gens)) + 1
    import marlin as ml

    settings: dict[str, Any] = {
        "dtype": dtype,
        "device": device,
        "context": needed,
        "slots": max(batches),
        "progress": True,
    }
    if model.endswith(".json"):
        config = json_module.loads(Path(model).read_text(encoding="utf-8"))
        loaded = ml.Model.random(config, format=format or "f16", **settings)
    else:
        loaded = ml.Model.load(model, format=format, **settings)
    with loaded:
        result = loaded.bench(
            prompt=prompts,
            gen=gens,
            depth=depths,
            batch=batches,
            repeat=repeat,
            with_profile=profile,
        )
        peak = None
        if profile:
            from marlin.doctor import stream_rate

            peak = stream_rate(loaded.device)
    facts = result.to_dict() | {"version": ml.__version__, "commit": commit(), "command": ctx.obj.command}
    if profile:
        facts |= {
            "peak_gb_per_s": peak,
            "profile": shares(result.profile, peak or 0.0),
            "prefill_profile": shares(result.prefill_profile, peak or 0.0),
        }
    if json:
        show.print_json(facts)
    else:
        _print_bench(facts)
    if plot:
        show.save_plot(result, plot)


def shares(rows: list[dict[str, Any]], peak: float) -> list[dict[str, Any]]:
    """Rows of a profile with each kernel's share of the whole time and of the peak read rate."""
    total = sum(row["us"] for row in rows) or 1.0
    return [
        row
        | {
            "share": row["us"] / total,
            "peak_share": row["gb_per_s"] / peak if peak else None,
        }
        for row in rows
    ]


def _print_bench(facts: dict[str, Any]) -> None:
    millions = facts["parameters"] / 1e6
    lines = [
        ("model", f"{facts['model']}, {millions:.1f}M parameters, {facts['format']}"),
        ("device", f"{facts['device']}, driver {facts['driver']}"),
        ("marlin", f"{facts['version']}, commit {facts['commit'] or 'unknown'}"),
        ("command", facts["command"]),
    ]
    show.print_table(lines)
    print()
    rows = [(row["name"], f"{row['tokens_per_s']:.2f} ± {row['deviation']:.2f}") for row in facts["rows"]]
    show.print_table(rows, ("test", "tokens/s"), right=(1,))
    if "peak_gb_per_s" not in facts:
        return
    title = f"by kernel; a streaming read does {facts['peak_gb_per_s']:.1f} GB/s"
    _print_kernels(facts["profile"], f"One decode step {title}")
    if facts["prefill_profile"]:
        longest = max(int(row["test"][2:]) for row in facts["rows"] if row["test"].startswith("pp"))
        _print_kernels(facts["prefill_profile"], f"A prefill of {longest} tokens {title}")
    print("GB/s counts the ranges that a kernel may touch: an upper bound for attention and embedding.")


def _print_kernels(rows: list[dict[str, Any]], title: str) -> None:
    print()
    kernels = [
        (
            row["name"],
            row["calls"],
            f"{row['us']:.1f}",
            f"{row['share']:.1%}",
            f"{row['gb_per_s']:.1f}",
            f"{row['tflop_per_s']:.3f}",
            f"{row['peak_share']:.0%}" if row["peak_share"] <= 1 else "–",
        )
        for row in rows
    ]
    head = ("kernel", "calls", "µs", "share", "GB/s", "TFLOP/s", "of peak")
    show.print_table(kernels, head, right=range(1, 7), title=title)


def perplexity(
    ctx: typer.Context,
    model: options.ModelName,
    file: Annotated[str, typer.Argument(metavar="FILE", help='A UTF-8 text; "-" is standard input.')],
    stride: Annotated[int, typer.Option(help="Tokens of a window.")] = 512,
    plot: options.Plot = None,
    format: options.Format = None,
    dtype: options.Dtype = "f16",
    device: options.Device = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """How well a model predicts a text: exp of the mean negative log-likelihood of its tokens.

    Example: marlin perplexity models/tale-moe story.txt --format int4
    """
    text = _read(file)
    import marlin as ml

    with ml.Model.load(model, format=format, dtype=dtype, device=device, slots=1) as loaded:
        begin = time.perf_counter()
        value = loaded.perplexity(text, stride=stride)
        seconds = time.perf_counter() - begin
        facts = {
            "perplexity": float(value),
            "nll": value.nll,
            "tokens": value.count,
            "stride": value.stride,
            "windows": value.windows,
            "seconds": seconds,
            "tokens_per_s": value.count / seconds,
            "model": loaded.name,
            "format": loaded.memory.format,
            "device": loaded.device.name,
            "command": ctx.obj.command,
        }
    if json:
        show.print_json(facts)
    else:
        print(f"{float(value):.4f}")
        print(
            f"[{show.clean(facts['model'])}, {facts['format']}, on {facts['device']}: "
            f"{value.count} tokens in {len(value.windows)} windows of {value.stride}, "
            f"{facts['tokens_per_s']:.0f} tokens/s]",
            file=sys.stderr,
        )
    if plot:
        show.save_plot(value, plot)


def _read(name: str) -> str:
    """A text file, or standard input."""
    if name == "-":
        data, name = sys.stdin.buffer.read(), "standard input"
    else:
        try:
            data = Path(name).read_bytes()
        except OSError as error:
            raise typer.BadParameter(f"{name}: {error.strerror}") from None
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}: not UTF-8 at byte {error.start}") from None
