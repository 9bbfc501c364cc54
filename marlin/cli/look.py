"""`marlin inspect`, `plan`, `devices` and `doctor`: what is there, before anything runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from marlin.cli import options, show

if TYPE_CHECKING:
    from marlin.device import DeviceInfo


def inspect(
    ctx: typer.Context,
    model: options.ModelName,
    tensors: Annotated[bool, typer.Option(help="List every tensor.")] = True,
    filter: Annotated[str, typer.Option(metavar="TEXT", help="Only names with this in them.")] = "",
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Tensors, formats and metadata of a checkpoint, from its headers; nothing is loaded.

    Example: marlin inspect models/tale-moe --filter layers.0
    """
    from marlin.html import size
    from marlin.inspect import inspect as look_into

    found = look_into(model)
    entries = [entry for entry in found.entries if filter in entry.name]
    if json:
        facts = found.to_dict()
        rows = [row for row in facts["tensors"] if tensors and filter in row["name"]]
        show.print_json(facts | {"tensors": rows})
        return
    millions = found.parameters / 1e6
    files = [(name, size(nbytes)) for name, nbytes in found.files.items()]
    show.print_table(
        [*found.config.items(), *found.metadata.items(), *files],
        title=f"{found.name}: {millions:.2f}M parameters, {size(found.nbytes)} ({found.loader})",
    )
    if tensors:
        print()
        show.print_table(
            [(e.name, e.form, " × ".join(map(str, e.shape)), size(e.nbytes)) for e in entries],
            ("tensor", "format", "shape", "size"),
            right=(3,),
        )
    whole = max(found.nbytes, 1)
    for title, totals in (("class", found.by_class()), ("format", found.by_form())):
        print()
        show.print_table(
            [(t.name, t.tensors, t.parameters, size(t.nbytes), f"{t.nbytes / whole:.1%}") for t in totals],
            (title, "tensors", "parameters", "size", "share"),
            right=(1, 2, 3, 4),
        )


def plan(
    ctx: typer.Context,
    model: options.ModelName,
    format: options.Format = None,
    dtype: options.Dtype = "f16",
    context: options.Context = None,
    kv: Annotated[
        str | None, typer.Option(help="Keys and values: f16 or f32. [f32 with --dtype f32, else f16]")
    ] = None,
    slots: Annotated[int | None, typer.Option(help="Sequences generated at once.")] = None,
    device: options.Device = None,
    memory_limit: Annotated[int | None, typer.Option(metavar="BYTES", help="Of device memory. [what is free]")] = None,
    expert_usage: Annotated[
        Path | None, typer.Option(metavar="FILE", help="How often experts are chosen, as ExpertUsage.save writes it.")
    ] = None,
    plot: options.Plot = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """What loading a model would take of the device's memory; works without a device, too.

    Routed experts for which there is no room live in host memory; then it says what reading them costs.

    Exit code 4 when it does not fit.

    Example: marlin plan models/tale-moe --format int4 --context 2048
    """
    from marlin.planning import plan as make_plan

    made = make_plan(model, format=format, dtype=dtype, context=context, kv=kv, slots=slots, device=device,
                     memory_limit=memory_limit, expert_usage=expert_usage)  # fmt: skip
    if json:
        show.print_json(made.to_dict())
    else:
        _print_plan(made)
    if plot:
        show.save_plot(made, plot)
    if not made.fits:
        print("marlin: the model does not fit; choose a smaller format or context", file=sys.stderr)
        raise typer.Exit(4)


def _print_plan(made: Any) -> None:
    from marlin.html import size

    rows = [*made.rows(), ("total", made.total)]
    if made.budget is not None:
        rows.append(("free on the device", made.budget))
    show.print_table(
        [(name, size(count), f"{count / made.total:.1%}" if i <= len(made.rows()) else "")
         for i, (name, count) in enumerate(rows)],
        right=(1, 2), title=f"{made.model}, {made.format}, on {made.device}",
    )  # fmt: skip
    print()
    for line in show.bar_lines(made.rows(), made.total):
        print(show.clean(line))
    if made.budget:
        print(f"{made.total / made.budget:.1%} of what the device has free")
    for line in made.lines():
        print(show.clean(line))


def devices(ctx: typer.Context, json: options.Json = False, debug: options.Debug = False) -> None:
    """The Vulkan devices of this machine, the best first. Exit code 4 when there is none.

    Example: marlin devices
    """
    from marlin import _C
    from marlin.device import devices as find_devices
    from marlin.errors import DeviceError
    from marlin.html import size

    found = find_devices()
    why = None if found else _C.vulkan_error() or "no Vulkan device was found"
    if json:
        show.print_json({"devices": [device.details for device in found], "error": why})
    if why:
        raise DeviceError(why)
    if json:
        return
    show.print_table(
        [(d.index, d.name, d.kind, size(d.memory_bytes), d.driver, d.api_version, _usable(d)) for d in found],
        ("", "name", "kind", "memory", "driver", "Vulkan", "usable"),
        right=(0, 3),
    )
    for device in found:
        print()
        show.print_table(
            [_feature(row, row["name"] in device.features) for row in _C.features()],
            title=f"Features of device {device.index}, UUID {device.uuid}",
        )


def _usable(device: DeviceInfo) -> str:
    return f"no: {device.missing}" if device.missing else "yes"


def _feature(row: dict[str, Any], present: bool) -> tuple[str, str, str]:
    return row["name"], "yes" if present else "no", row["text"]


def doctor(
    ctx: typer.Context,
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="A model to say something of, too.")] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help='Write what a bug report needs; "-" prints it.')
    ] = None,
    device: options.Device = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Check device, driver, kernels and caches; multiply matrices, measure memory, and advise.

    Exit code 4 without a device, 1 when a check fails. The report has no paths and no secrets.

    Example: marlin doctor --report report.md
    """
    from marlin import doctor as examiner
    from marlin.errors import DeviceError
    from marlin.model import progress_bar

    with progress_bar("doctor", 4, True) as advance:
        facts = examiner.examine(device, model=model, advance=advance)
    if report is not None and str(report) == "-":
        print(examiner.report_text(facts), end="")
    elif report is not None:
        report.write_text(examiner.report_text(facts), encoding="utf-8")
        print(f"wrote {report}", file=sys.stderr)
    if json:
        show.print_json(facts)
    elif str(report) != "-":
        _print_examination(facts)
    if facts["error"]:
        raise DeviceError(facts["error"])
    if facts["problems"]:
        raise typer.Exit(1)


def _print_examination(facts: dict[str, Any]) -> None:
    from marlin.doctor import summary_rows

    show.print_table(summary_rows(facts))
    if "features" in facts:
        print()
        show.print_table(
            [_feature(row, row["present"]) for row in facts["features"]],
            ("feature", "", ""),
        )
        print()
        show.print_table(
            [(row["name"], row["available"], len(row["skipped"]), len(row["dropped"]), _why(row))
             for row in facts["kernels"]],
            ("kernel", "modules", "skipped", "dropped", "why"), right=(1, 2, 3),
        )  # fmt: skip
    print()
    for line in facts["problems"]:
        typer.secho(f"problem: {show.clean(line)}", bold=True)
    for line in facts["advice"]:
        print(show.clean(line))


def _why(row: dict[str, Any]) -> str:
    """Why modules of a kernel are skipped or dropped, each reason once."""
    missing = sorted({feature for names in row["skipped"].values() for feature in names})
    reasons = [f"the device lacks {', '.join(missing)}"] if missing else []
    return "; ".join([*reasons, *sorted(set(row["dropped"].values()))])
