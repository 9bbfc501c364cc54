"""Arguments and options that several commands share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Final

import typer


def _debug(ctx: typer.Context, value: bool) -> bool:
    if value:
        ctx.find_root().obj.debug = True
    return value


def _version(value: bool) -> None:
    if value:
        import marlin

        typer.echo(f"marlin {marlin.__version__}")
        raise typer.Exit


def counts(value: str) -> str:
    """A callback that refuses what `numbers` cannot read."""
    if not re.fullmatch(r"\d{1,9}(,\d{1,9})*", value.replace(" ", "")):
        raise typer.BadParameter(f"{value!r} is not a list of numbers like 128,512")
    return value


def numbers(value: str) -> tuple[int, ...]:
    """ "128,512" as numbers."""
    return tuple(int(item) for item in value.replace(" ", "").split(","))


version_option: Final[Any] = typer.Option(
    "--version", help="Print the version and exit.", is_eager=True, callback=_version
)

# What a model is loaded with; the texts name what Model.load takes.
ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="Folder, or hub name (org/model).")]
Device = Annotated[
    str | None,
    typer.Option(help="Index, part of a name, or UUID. [$MARLIN_DEVICE, else the best]"),
]
Format = Annotated[
    str | None,
    typer.Option(
        metavar="FORMAT",
        help="Round the weights to int4, int4:64, int8, fp8, fp4, mxfp4, nvfp4, f16, bf16 or f32 "
        "while loading. [as stored]",
    ),
]
Dtype = Annotated[
    str,
    typer.Option(
        help="Activations between kernels: f16, bf16 or f32; int8: f16, rounded to 8 bits where EXL3 weights multiply "
        "a token."
    ),
]
Context = Annotated[int | None, typer.Option(metavar="TOKENS", help="Tokens of prompt and answer together.")]

# How tokens are chosen; what is not given is the model's generation_config.json.
MaxTokens = Annotated[int, typer.Option(help="Stop after so many tokens.")]
Temperature = Annotated[float | None, typer.Option(help="0 is greedy.")]
TopK = Annotated[int | None, typer.Option(help="Keep the K likeliest tokens; 0 keeps all.")]
TopP = Annotated[float | None, typer.Option(help="Keep the likeliest tokens that sum to P.")]
MinP = Annotated[float | None, typer.Option(help="Keep tokens at least P times the likeliest.")]
Seed = Annotated[int | None, typer.Option(help="The same seed gives the same text. [drawn]")]
Stop = Annotated[list[str] | None, typer.Option(help="End the text before this string; may be repeated.")]
Greedy = Annotated[bool, typer.Option("--greedy", help="Always the likeliest token.")]

Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
Plot = Annotated[Path | None, typer.Option(metavar="FILE", help="Draw to an .svg or .png file (needs matplotlib).")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.", callback=_debug)]


def temperature_of(temperature: float | None, greedy: bool) -> float | None:
    """The temperature that --greedy and --temperature ask for together."""
    if greedy and temperature:
        raise typer.BadParameter("--greedy and --temperature exclude each other")
    return 0.0 if greedy else temperature
