"""A look at device, kernels, caches and versions, a short self-test, and the report for a bug.

The report says nothing of files but the model's name, and of the environment only whether the variables
that matter are set.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

import marlin
from marlin import _C, cachedir, html
from marlin.cli.process import commit
from marlin.device import SHADERS, Device, devices, find
from marlin.errors import DeviceError, MarlinError
from marlin.models.base import random_trellis
from marlin.trellis import TrellisFormat

PACKAGES: Final = ("numpy", "ml_dtypes", "tokenizers", "jinja2", "typer", "rich", "huggingface_hub")
VARIABLES: Final = (
    "MARLIN_DEVICE", "MARLIN_CACHE", "VK_DRIVER_FILES", "VK_ICD_FILENAMES",
    "VK_LOADER_DRIVERS_SELECT", "VK_INSTANCE_LAYERS", "LP_NATIVE_VECTOR_WIDTH", "MESA_VK_DEVICE_SELECT",
)  # fmt: skip
SELF_TEST_FORMATS: Final = ("f16", "int8", "int4", "fp4_e2m1", "exl3")
SELF_TEST_NMSE: Final = 1e-6  # f16 operands and output, f32 accumulation
ENTRY: Final = struct.Struct("<64sQQQII")  # an entry of shaders.bin, which tools/shaderc.py writes
READ_BYTES: Final = 2 << 30
READ_BYTES_SOFTWARE: Final = 8 << 20
CPU_BYTES: Final = 64 << 20


def examine(
    which: int | str | None = None,
    *,
    model: str | None = None,
    advance: Callable[[int], None] = lambda count: None,
) -> dict[str, Any]:
    """Everything that the doctor knows, as JSON values; `advance` is called as steps are done.

    "problems" lists what is wrong: empty is healthy. "error" says why there is no device.
    """
    report: dict[str, Any] = {
        "versions": versions(),
        "machine": machine(),
        "environment": [name for name in VARIABLES if os.environ.get(name)],
        "shaders": shader_facts(),
        "cache": cache_facts(),
        "devices": [device.details for device in devices()],
        "device": None,
        "error": None,
        "problems": [],
    }
    advance(1)
    try:
        report["device"] = find(which).details
        device = Device(which)
    except DeviceError as error:
        report["error"] = str(error)
        report["problems"].append(str(error))
        report["advice"] = advice(report)
        return report
    report["device"] = device.info.details
    report["features"] = features(device)
    report["kernels"] = kernels(device)
    report["memory"] = device.memory()
    advance(1)
    report["self_test"] = self_test(device)
    for name, what, probe in (
        ("trellis_shares", "trellis", trellis_shares),
        ("open_choice", "experts", open_choice),
    ):
        try:
            report[name] = probe(device)
        except MarlinError as error:
            report[name] = None
            report["problems"].append(f"{what}: {error}")
    report["problems"] += [f"self-test: {row['kernel']}: {row['text']}" for row in report["self_test"] if not row["ok"]]
    advance(1)
    try:
        report["read_gb_per_s"] = stream_rate(device)
    except MarlinError as error:
        report["read_gb_per_s"] = None
        report["problems"].append(f"streaming read: {error}")
    report["cpu_read_gb_per_s"] = cpu_stream_rate()
    advance(1)
    if model is not None:
        report["model"] = model_facts(model, device)
    report["advice"] = advice(report)
    return report


def versions() -> dict[str, str]:
    """Of Marlin and what it stands on; "missing" for a package that is not installed."""
    found = {"marlin": marlin.__version__, "commit": commit() or "none", "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "missing"
    return found


def machine() -> dict[str, Any]:
    """System, C library, processor and its memory."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        memory = 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "system": f"{platform.system()} {platform.release()}",
        "distribution": _distribution(),
        "libc": " ".join(platform.libc_ver()),
        "processor": _processor(),
        "cores": cores,
        "memory_bytes": memory,
    }


def _distribution() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "unknown")
    except OSError:
        return "unknown"


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.machine()
    found = re.search(r"(?m)^model name\s*:\s*(.+)$", text)
    return f"{found.group(1)} ({platform.machine()})" if found else platform.machine()


def shader_facts() -> dict[str, Any]:
    """What shaders.json says of the build: compiler, validator, modules that were dropped and why."""
    try:
        facts = json.loads(SHADERS.with_suffix(".json").read_text(encoding="utf-8"))
        size = SHADERS.stat().st_size
    except (OSError, ValueError) as error:
        return {"error": f"shaders.bin or shaders.json: {error.__class__.__name__}: reinstall marlin"}
    return {
        "compiler": facts.get("compiler"),
        "validator": facts.get("validator"),
        "build": facts.get("build"),
        "modules": len(facts.get("hashes", {})),
        "bytes": size,
        "dropped": facts.get("dropped", []),
    }


def cache_facts() -> dict[str, Any]:
    """Folder of the pipeline cache, whether it can be written, files and bytes in it."""
    folder = cachedir.cache_folder("pipelines")
    files = [path for path in folder.glob("**/*") if path.is_file()] if folder else []
    return {
        "folder": str(folder) if folder else None,
        "writable": folder is not None,
        "files": len(files),
        "bytes": sum(path.stat().st_size for path in files),
    }


def features(device: Device) -> list[dict[str, Any]]:
    """Every feature that kernels can ask for, and whether the device has it."""
    return [row | {"present": row["name"] in device.features} for row in _C.features()]


def kernels(device: Device) -> list[dict[str, Any]]:
    """Kernel families: modules that can run here, those skipped for want of a feature, those dropped by the build."""
    names = [row["name"] for row in _C.features()]
    present = sum(1 << i for i, name in enumerate(names) if name in device.features)
    families = {
        row["name"]: {"name": row["name"], "available": 0, "skipped": {}, "dropped": {}} for row in _C.kernels()
    }
    for name, needs in modules().items():
        family: dict[str, Any] = families[name.partition(".")[0]]
        missing = [feature for i, feature in enumerate(names) if needs & ~present & 1 << i]
        if missing:
            family["skipped"][name] = missing
        else:
            family["available"] += 1
    for row in shader_facts().get("dropped", []):
        families[row["name"].partition(".")[0]]["dropped"][row["name"]] = row["reason"]
    return list(families.values())


def modules() -> dict[str, int]:
    """Name -> mask of needed features, of every module in shaders.bin."""
    data = SHADERS.read_bytes()
    (count,) = struct.unpack_from("<I", data, 8)
    entries = (ENTRY.unpack_from(data, 16 + i * ENTRY.size) for i in range(count))
    return {name.rstrip(b"\0").decode("ascii"): needs for name, _, _, _, needs, _ in entries}


def self_test(device: Device) -> list[dict[str, Any]]:
    """Small matrix products, one row (GEMV) and many (GEMM), against NumPy over the same dequantized weights."""
    rng = np.random.default_rng(1)
    n, k = 96, 256
    weights = rng.standard_normal((n, k), np.float32)
    inputs = rng.standard_normal((40, k), np.float32).astype(np.float16)

    def plain(format: str) -> tuple[_C.Linear, NDArray[np.float32]]:
        linear = _C.Linear(device.raw, n, k, format)
        linear.set_rows(weights, "f32", n)
        return linear, np.frombuffer(linear.dequantize("f32").tobytes(), np.float32).reshape(n, k).T

    def trellis() -> tuple[_C.TrellisLinear, NDArray[np.float32]]:
        layer = random_trellis(device.raw, n, k, TrellisFormat(4, "mul1"))
        return layer, np.frombuffer(layer.dequantize("f32").tobytes(), np.float32).reshape(k, n)

    results = []
    for format in SELF_TEST_FORMATS:
        for rows, kind in ((1, "gemv"), (40, "gemm")):
            entry = {"kernel": f"{kind} {format}", "ok": False, "nmse": None, "text": ""}
            results.append(entry)
            try:
                layer, known = trellis() if format == "exl3" else plain(format)
                wanted = inputs[:rows].astype(np.float64) @ known
                y = layer(_C.tensor(device.raw, inputs[:rows]))
                got = np.frombuffer(y.tobytes(), np.float16).reshape(wanted.shape)
            except MarlinError as error:
                entry["text"] = str(error)
                continue
            error_power = float(((got - wanted) ** 2).sum() / (wanted**2).sum())
            entry["ok"] = bool(error_power <= SELF_TEST_NMSE)
            entry["nmse"] = error_power
            entry["text"] = f"NMSE {error_power:.1e} (at most {SELF_TEST_NMSE:.0e})"
    return results


def trellis_shares(device: Device) -> int:
    """In how many shares a product of one row with an EXL3 matrix may stay, so that nobody waits for its sum
    (docs/trellis.md); 0 where it is added up by those who make it."""
    n, k = 256, 1280
    layer = random_trellis(device.raw, n, k, TrellisFormat(4, "mul1"))
    found = layer(_C.full(device.raw, (1, k), 0, "f16"), shares=True)
    return found.count if isinstance(found, _C.Shares) else 0


def open_choice(device: Device) -> bool:
    """Whether the experts of a single row are chosen by the products that they are for, so that no workgroup of the
    router waits for another (docs/moe.md); for a mixture of 64 in one format."""
    experts, hidden, inner = 64, 64, 8
    router = _C.Linear(device.raw, experts, hidden, "f32")
    gate_up = _C.Linear(device.raw, experts * 2 * inner, hidden, "f16")
    down = _C.Linear(device.raw, experts * hidden, inner, "f16")
    return _C.MoE(router, gate_up, down, experts=experts, top_k=4).open_choice


def stream_rate(device: Device) -> float:
    """GB/s at which the device reads memory: the best of five f32 matrix-vector products, timed on the device.

    The matrix is 2 GiB or an eighth of what is free, far beyond any cache; 8 MiB on a software device.
    """
    k = 8192
    limit = device.memory()["device_budget"] // 8
    largest = READ_BYTES_SOFTWARE if device.kind == "software" else READ_BYTES
    rows = max(1, min(largest, limit, device.info.details["max_allocation"] // 2) // (4 * k))
    matrix = _C.Linear(device.raw, rows, k, "f32")
    x = _C.full(device.raw, (1, k), 0, "f32")
    matrix(x)
    device.sync()
    device.raw.profile_start()
    try:
        for _ in range(5):
            matrix(x)
        device.sync()
    finally:
        times = [row["ns"] for row in device.raw.profile_stop() if row["name"].startswith("gemv")]
    return matrix.nbytes / max(min(times), 1.0)


def cpu_stream_rate() -> float:
    """GB/s at which one core of the processor reads memory, by a NumPy sum."""
    data = np.ones(CPU_BYTES // 4, np.float32)
    best = 0.0
    for _ in range(3):
        begin = time.perf_counter()
        data.sum()
        best = max(best, data.nbytes / (time.perf_counter() - begin) / 1e9)
    return best


def model_facts(source: str, device: Device) -> dict[str, Any]:
    """A model's name, shape, formats and memory plan; what refuses it, if it is refused."""
    from marlin.inspect import inspect
    from marlin.planning import plan

    try:
        found = inspect(source)
        facts = {
            "name": found.name,
            "parameters": found.parameters,
            "nbytes": found.nbytes,
            "config": found.config,
            "forms": {total.name: total.nbytes for total in found.by_form()},
        }
        return facts | {"plan": plan(source, device=device).to_dict()}
    except (MarlinError, ValueError) as error:
        return {"name": Path(source).name, "error": str(error)}


def advice(report: dict[str, Any]) -> list[str]:
    """What to do next, in sentences."""
    if report["error"]:
        return [f"No device can be used: {report['error']}."]
    lines = []
    device, cache = report["device"], report["cache"]
    if report["problems"]:
        lines.append("Results of this driver cannot be trusted: update it, then file the report as a bug.")
    if device["kind"] == "software":
        lines.append(
            "Only a software device is in use: it is right but slow. With a GPU in the machine, install its "
            "Vulkan driver (mesa-vulkan-drivers for AMD and Intel, the maker's for NVIDIA)."
        )
    elif (report["read_gb_per_s"] or 0) < report["cpu_read_gb_per_s"]:
        lines.append(
            "The processor reads memory faster than this device: small models may be quicker on a software "
            "device (MARLIN_DEVICE=llvmpipe)."
        )
    else:
        lines.append(f"Use {device['name']}.")
    if not cache["writable"]:
        lines.append("Pipelines are compiled anew in each process: set MARLIN_CACHE to a folder to write in.")
    if report["shaders"].get("dropped"):
        lines.append("Kernels were dropped when the package was built: a newer glslang has them.")
    return lines


def report_text(report: dict[str, Any]) -> str:
    """The report for a bug, as Markdown: the same facts without paths."""
    public = json.loads(json.dumps(report, default=str))
    public["cache"].pop("folder")
    for row in (public["device"] or {}, *public["devices"]):
        row.pop("uuid", None)
        row.pop("driver_uuid", None)
    device = public["device"]
    lines = [
        "# Marlin doctor report",
        "",
        f"- marlin {public['versions']['marlin']}, commit {public['versions']['commit']}",
        f"- device: {device['name']} ({device['driver']})" if device else f"- no device: {public['error']}",
        f"- problems: {'; '.join(public['problems']) or 'none found'}",
        "",
        "```json",
        json.dumps(public, indent=2, ensure_ascii=False),
        "```",
        "",
    ]
    return without_paths("\n".join(lines))


def without_paths(text: str) -> str:
    """Text with folders taken out of absolute and home paths: what is left is the last name."""
    return re.sub(r"(?<![\w.:/])(?:~|[A-Za-z]:)?[/\\](?:[^\s/\\\"'<>|]+[/\\])+", "…/", text)


def summary_rows(report: dict[str, Any]) -> list[tuple[str, str]]:
    """The report as (name, text) lines for a person."""
    known, box, shaders, cache = (report[key] for key in ("versions", "machine", "shaders", "cache"))
    rows = [
        ("marlin", f"{known['marlin']}, commit {known['commit']}, Python {known['python']}"),
        ("packages", ", ".join(f"{name} {known[name]}" for name in PACKAGES)),
        ("system", f"{box['distribution']}, {box['system']}, {box['libc']}"),
        ("processor", f"{box['processor']}, {box['cores']} cores, {html.size(box['memory_bytes'])}"),
        ("shaders", shaders.get("error")
            or f"{shaders['modules']} modules, {html.size(shaders['bytes'])}, by {shaders['compiler']}"),
        ("cache", f"{_home(cache['folder'])}, {cache['files']} files, {html.size(cache['bytes'])}"
            if cache["writable"] else "none: no folder to write in"),
    ]  # fmt: skip
    if report["environment"]:
        rows.append(("set", ", ".join(report["environment"])))
    device = report["device"]
    if not device or report["error"]:
        return [*rows, ("device", f"none: {report['error']}")]
    memory = report["memory"]
    rows += [
        ("device", f"{device['name']} ({device['kind']}), driver {device['driver']}, Vulkan {device['api_version']}"),
        ("memory", f"{html.size(device['memory_bytes'])}, {html.size(memory['device_budget'])} free for this process"),
        ("subgroups", f"{device['subgroup_min']} to {device['subgroup_max']} lanes"),
        ("reads", _rates(report)),
    ]  # fmt: skip
    tests = report["self_test"]
    good = sum(row["ok"] for row in tests)
    worst = max((row["nmse"] for row in tests if row["nmse"] is not None), default=float("nan"))
    rows.append(("self-test", f"{good} of {len(tests)} products right, worst NMSE {worst:.1e}"))
    shares = report["trellis_shares"]
    if shares is not None:
        rows.append(("trellis", f"sums of one row stay in {shares} shares, nobody waits for them" if shares
            else "sums of one row are added up by those who make them"))  # fmt: skip
    choice = report["open_choice"]
    if choice is not None:
        rows.append(("experts", "those of one row are chosen by the products that they are for, nobody waits" if choice
            else "those of one row are chosen by the router"))  # fmt: skip
    if "model" in report:
        found = report["model"]
        text = found.get("error") or (
            f"{found['parameters'] / 1e6:.1f}M parameters, {html.size(found['nbytes'])} in files, "
            f"{html.size(found['plan']['total'])} on the device"
        )
        rows.append((f"model {found['name']}", text))
    return rows


def _rates(report: dict[str, Any]) -> str:
    rate = report["read_gb_per_s"]
    device = f"{rate:.2f} GB/s" if rate is not None else "not measured"
    return f"{device} by the device, {report['cpu_read_gb_per_s']:.1f} GB/s by one core"


def _home(folder: str | None) -> str:
    home = os.path.expanduser("~")
    return "~" + folder[len(home) :] if folder and folder.startswith(home + os.sep) else str(folder)
