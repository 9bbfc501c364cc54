"""The command line: exit codes, what goes to which stream, JSON, interruption."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import marlin
from marlin import doctor
from marlin.cli import prepare
from marlin.cli.app import app
from marlin.cli.measure import shares
from marlin.cli.show import bar_lines, clean
from marlin.errors import MarlinError

ROOT = Path(__file__).resolve().parent.parent
MODEL = str(ROOT / "models" / "fix-llama")
COMMANDS = ("run", "chat", "bench", "perplexity", "inspect", "plan", "devices", "doctor")


@dataclasses.dataclass
class Outcome:
    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def complaint(self) -> str:
        """What stderr says, which must be one line."""
        lines = [line for line in self.err.splitlines() if "warning:" not in line]
        assert len(lines) == 1 and lines[0].startswith("marlin: "), self.err
        return lines[0]


def cli(*args: str, stdin: str | bytes = "") -> Outcome:
    """The command in this process."""
    result = CliRunner().invoke(app, list(args), input=stdin, prog_name="marlin")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return Outcome(result.exit_code, result.stdout, result.stderr)


def command(args: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "marlin", *args]


def environment(**changes: str) -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path.rstrip(os.pathsep), **changes}


def process(*args: str, **changes: str) -> Outcome:
    """The command in a process of its own."""
    done = subprocess.run(
        command(args),
        env=environment(**changes),
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


# ---- help and usage


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_an_example(name: str) -> None:
    told = cli(name, "--help")
    assert told.code == 0
    assert f"Example: marlin {name}" in re.sub(r"\s+", " ", told.out)
    assert "--json" in told.out and "--debug" in told.out


def test_help_lists_the_commands() -> None:
    assert all(name in cli("--help").out for name in COMMANDS)
    nothing = cli()
    assert nothing.code == 2 and "Usage:" in nothing.out


def test_version() -> None:
    assert cli("--version").out == f"marlin {marlin.__version__}\n"


def test_help_imports_nothing_heavy() -> None:
    heavy = ("numpy", "rich", "tokenizers", "jinja2", "marlin._C", "matplotlib")
    code = (
        "import sys\nsys.argv = ['marlin', '--help']\nfrom marlin.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        f"loaded = [name for name in {heavy!r} if name in sys.modules]\n"
        "assert not loaded, loaded\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["bogus"], "bogus"),
        (["--bogus"], "--bogus"),
        (["run"], "MODEL"),
        (["run", MODEL, "x", "--max-tokens", "many"], "--max-tokens"),
        (["run", MODEL, "x", "--greedy", "--temperature", "1"], "exclude"),
        (["run", MODEL, "x", "--temperature", "-1"], "temperature must be"),
        (["run", MODEL, "x", "--top-p", "2"], "top_p must be"),
        (["run", MODEL, "x", "--format", "int5"], "int5"),
        (["run", MODEL, "x", "--dtype", "f64"], "dtype must be"),
        (["run", MODEL, "x", "--context", "99999"], "context must be"),
        (["run", MODEL, "word " * 2000], "more than the context"),
        (["bench", MODEL, "-p", "0", "-n", "0"], "nothing to measure"),
        (["bench", MODEL, "-p", "1;2"], "1;2"),
        (["perplexity", MODEL, "no-such-file.txt"], "no-such-file.txt"),
        (["plan", MODEL, "--kv", "f64"], "kv must be"),
    ],
)
def test_usage(args: list[str], text: str) -> None:
    told = cli(*args)
    assert told.code == 2 and told.out == ""
    assert text in told.complaint


def test_debug_shows_the_traceback() -> None:
    told = cli("inspect", "no-such-model", "--debug")
    assert told.code == 3 and "Traceback" in told.err


# ---- models that are refused


def broken(folder: Path, what: str) -> str:
    """A copy of the model that is broken."""
    shutil.copytree(MODEL, folder, ignore=shutil.ignore_patterns("golden.npz"))
    config = json.loads((folder / "config.json").read_text())
    if what == "model_type":
        config["model_type"] = "other"
    (folder / "config.json").write_text(json.dumps(config) if what != "config" else "{")
    if what == "weights":
        with open(folder / "model.safetensors", "r+b") as file:
            file.truncate(100_000)
    return str(folder)


@pytest.mark.parametrize("what", ["model_type", "config", "weights"])
def test_refused_models(tmp_path: Path, what: str) -> None:
    folder = broken(tmp_path / "model", what)
    for args in (["run", folder, "x"], ["plan", folder]):
        told = cli(*args)
        assert told.code == 3 and told.out == ""
        assert told.complaint


@pytest.mark.parametrize("name", ["no/such/model", "/nonexistent", "a\nb", ""])
def test_no_such_model(name: str) -> None:
    told = cli("inspect", name)
    assert told.code == 3 and told.complaint


# ---- run and chat


def test_run_streams_to_stdout_and_tells_on_stderr() -> None:
    args = ["run", MODEL, "Once upon a time", "--greedy", "--max-tokens", "12"]
    told = cli(*args)
    facts = cli(*args, "--json").json()
    assert told.code == 0
    assert told.out == facts["text"] + "\n" * (not facts["text"].endswith("\n"))
    assert facts["device"] in told.err and "tokens/s" in told.err
    assert f"$ marlin run {MODEL} 'Once upon a time' --greedy --max-tokens 12" in told.err
    assert facts["finish_reason"] == "length" and len(facts["tokens"]) == 12
    assert facts["tokens_per_s"] > 0 and facts["first_token_s"] > 0
    with marlin.Model.load(MODEL, slots=1, progress=False) as model:
        wanted = model.generate("Once upon a time", temperature=0, max_tokens=12)
    assert facts["tokens"] == wanted.tokens and facts["text"] == wanted.text


def test_run_options() -> None:
    args = ["run", MODEL, "-", "--seed", "3", "--max-tokens", "8", "--no-stats"]
    first = cli(*args, stdin="Once upon a time\n")
    assert (first.code, first.err) == (0, "")
    assert cli(*args, stdin="Once upon a time").out == first.out
    told = cli(*args, "--stop", first.out[2:5], "--echo", stdin="Once upon a time")
    assert told.out.startswith("Once upon a time" + first.out[:2].rstrip())
    assert first.out[2:5] not in told.out.removeprefix("Once upon a time")
    assert cli("run", MODEL, "-", stdin=b"\xff").code == 2


def test_chat_answers_each_line(tmp_path: Path) -> None:
    saved = tmp_path / "talk.json"
    lines = f"Hello\n\nAnd you?\n/save {saved}\n/reset\nHello\n/quit\nnever\n"
    args = ["chat", MODEL, "--greedy", "--max-tokens", "4", "--system", "Be brief.", "--json"]
    told = cli(*args, stdin=lines)
    assert told.code == 0, told.err
    answers = [json.loads(line) for line in told.out.splitlines()]
    assert len(answers) == 3
    assert answers[0]["text"] == answers[2]["text"]  # reset: the same question, the same answer
    messages = json.loads(saved.read_text())["messages"]
    assert [m["role"] for m in messages] == ["system", "user", "assistant", "user", "assistant"]
    assert messages[2]["content"] == answers[0]["text"]


def test_chat_complains() -> None:
    assert "/bogus" in cli("chat", MODEL, stdin="/bogus\n").complaint
    told = cli("chat", MODEL, stdin="word " * 2000 + "\n")
    assert told.code == 1 and "more than the context" in told.complaint
    assert cli("chat", MODEL, stdin="").code == 0


# ---- numbers


def test_bench() -> None:
    told = cli("bench", MODEL, "-p", "8", "-n", "4", "-d", "0,16", "-r", "2", "--profile", "--json")
    facts = told.json()
    names = [row["name"] for row in facts["rows"]]
    assert names == ["pp8", "tg4", "pp8 @ d16", "tg4 @ d16"]
    assert all(row["tokens_per_s"] > 0 and row["deviation"] >= 0 for row in facts["rows"])
    assert facts["driver"] and facts["command"].startswith("marlin bench ")
    assert facts["peak_gb_per_s"] > 0
    assert sum(row["share"] for row in facts["profile"]) == pytest.approx(1)
    assert any(row["name"].startswith("gemv") for row in facts["profile"])
    assert sum(row["share"] for row in facts["prefill_profile"]) == pytest.approx(1)


def test_bench_table() -> None:
    told = cli("bench", MODEL, "-p", "0", "-n", "4", "-r", "1", "--profile")
    assert re.search(r"(?m)^tg4 +[\d.]+ ± 0\.00$", told.out), told.out
    assert "driver" in told.out and "commit" in told.out and "of peak" in told.out
    assert "One decode step by kernel" in told.out and "A prefill" not in told.out
    told = cli("bench", MODEL, "-p", "4,8", "-n", "0", "-r", "1", "--profile")
    assert "A prefill of 8 tokens by kernel" in told.out


def test_shares() -> None:
    rows = shares([{"us": 3.0, "gb_per_s": 50.0}, {"us": 1.0, "gb_per_s": 0.0}], 100.0)
    assert [row["share"] for row in rows] == [0.75, 0.25]
    assert [row["peak_share"] for row in rows] == [0.5, 0.0]


def test_perplexity(tmp_path: Path) -> None:
    text = "The king had three daughters, and the youngest was so fair that the sun wondered.\n" * 3
    file = tmp_path / "text.txt"
    file.write_text(text)
    facts = cli("perplexity", MODEL, str(file), "--stride", "16", "--json").json()
    with marlin.Model.load(MODEL, slots=1, progress=False) as model:
        assert facts["perplexity"] == pytest.approx(float(model.perplexity(text, stride=16)))
    told = cli("perplexity", MODEL, "-", "--stride", "16", stdin=text)
    assert told.out == f"{facts['perplexity']:.4f}\n"
    file.write_bytes(b"\xff\xfe")
    assert cli("perplexity", MODEL, str(file)).code == 2


# ---- what is there


def test_inspect() -> None:
    facts = cli("inspect", MODEL, "--json").json()
    tensors = {row["name"]: row for row in facts["tensors"]}
    q = tensors["model.layers.0.self_attn.q_proj.weight"]
    assert (q["kind"], q["shape"], q["quantized"]) == ("attention", [256, 128], True)
    assert q["form"].startswith("int8, per channel")
    assert not any("weight_scale" in name for name in tensors)
    for totals in (facts["by_class"], facts["by_form"]):
        assert sum(row["nbytes"] for row in totals) == facts["nbytes"]
        assert sum(row["parameters"] for row in totals) == facts["parameters"]
    size = (Path(MODEL) / "model.safetensors").stat().st_size
    assert 0 < size - facts["nbytes"] < 20_000  # the header
    shown = cli("inspect", MODEL, "--filter", "layers.1.mlp").out
    assert "model.layers.1.mlp.up_proj.weight" in shown and "layers.0" not in shown


def test_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    from marlin.planning import plan

    args = ["plan", MODEL, "--format", "int4", "--context", "512", "--slots", "2"]
    facts, wanted = cli(*args, "--json").json(), plan(MODEL, format="int4", context=512, slots=2).to_dict()
    for each in (facts, wanted):
        assert each.pop("budget") > 0  # what the device has free changes while others use it
    assert facts == wanted
    shown = cli(*args)
    assert shown.code == 0 and "KV cache" in shown.out and "█" in shown.out
    small = dataclasses.replace(plan(MODEL), budget=1000)
    monkeypatch.setattr("marlin.planning.plan", lambda *args, **options: small)
    told = cli(*args)
    assert told.code == 4 and "does not fit" in told.complaint


@pytest.mark.parametrize(
    "argv, opened",
    [
        (["run", "model", "text"], [None]),
        (["chat", "--device", "1", "model"], ["1"]),
        (["bench", "model", "--device=llvm"], ["llvm"]),
        (["run", "--help"], []),
        (["plan", "model"], []),
        ([], []),
    ],
)
def test_what_is_opened_ahead(monkeypatch: pytest.MonkeyPatch, argv: list[str], opened: list[str | None]) -> None:
    seen: list[str | None] = []
    monkeypatch.setattr("marlin.device.open_ahead", seen.append)
    prepare(argv)
    assert seen == opened


def test_a_device_that_cannot_be_opened_ahead_is_told_once() -> None:
    done = subprocess.run(
        command(["run", MODEL, "x", "--device", "nosuch"]),
        capture_output=True,
        text=True,
        env=environment(),
        timeout=60,
    )
    assert done.returncode == 4 and done.stderr.count("nosuch") == 1 and len(done.stderr.splitlines()) == 1


def test_devices() -> None:
    facts = cli("devices", "--json").json()
    assert facts["error"] is None and facts["devices"][0]["name"]
    assert facts["devices"][0]["name"] in cli("devices").out


def test_doctor(tmp_path: Path) -> None:
    file = tmp_path / "report.md"
    told = cli("doctor", MODEL, "--json", "--report", str(file))
    facts = told.json()
    assert told.code == 0 and facts["problems"] == [] and facts["advice"]
    assert len(facts["self_test"]) == 10 and all(row["ok"] for row in facts["self_test"])
    assert facts["read_gb_per_s"] > 0
    assert (facts["trellis_shares"] > 1) == (facts["device"]["kind"] != "software")
    lanes = {facts["device"]["subgroup_min"], facts["device"]["subgroup_max"]}
    assert facts["open_choice"] == (facts["device"]["kind"] != "software" and len(lanes) == 1 and min(lanes) <= 64)
    built = sum(row["available"] + len(row["skipped"]) for row in facts["kernels"])
    assert built == facts["shaders"]["modules"]
    report = file.read_text()
    assert "fix-llama" in report and facts["device"]["name"] in report
    for private in (str(ROOT), str(tmp_path), str(Path.home()), facts["device"]["uuid"]):
        assert private not in report
    plain = cli("doctor")
    assert "self-test" in plain.out and "kernel" in plain.out


def test_report_has_no_paths() -> None:
    text = "cannot open /home/someone/models/x.bin, ~/a/b or C:\\Users\\someone\\x; 1/2 and a/b stay"
    assert doctor.without_paths(text) == "cannot open …/x.bin, …/b or …/x; 1/2 and a/b stay"


def test_doctor_tells_of_a_failed_self_test(monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"kernel": "gemv f16", "ok": False, "nmse": 0.5, "text": "NMSE 5.0e-01"}
    monkeypatch.setattr(doctor, "self_test", lambda device: [row])
    told = cli("doctor")
    assert told.code == 1 and "problem: self-test: gemv f16" in told.out


@pytest.mark.parametrize(("probe", "what"), [("trellis_shares", "trellis"), ("open_choice", "experts")])
def test_doctor_goes_on_where_a_probe_fails(monkeypatch: pytest.MonkeyPatch, probe: str, what: str) -> None:
    def fail(device: object) -> int:
        raise MarlinError("no memory for that")

    monkeypatch.setattr(doctor, probe, fail)
    told = cli("doctor")
    assert told.code == 1 and f"problem: {what}: no memory for that" in told.out and "self-test" in told.out


def test_plot_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    told = cli("plan", MODEL, "--plot", str(tmp_path / "plan.svg"))
    assert told.code == 1 and "pip install" in told.err


# ---- without a device, interrupted, cut off


def test_no_device() -> None:
    none = {"VK_DRIVER_FILES": "/nonexistent", "VK_ICD_FILENAMES": "/nonexistent"}
    for args in (["devices"], ["run", MODEL, "x"]):
        told = process(*args, **none)
        assert told.code == 4 and told.out == ""
        assert "install" in told.complaint
    told = process("doctor", "--json", **none)
    assert told.code == 4 and told.json()["device"] is None
    told = process("plan", MODEL, "--json", **none)
    assert told.code == 0 and told.json()["budget"] is None


def test_no_such_device() -> None:
    assert cli("run", MODEL, "x", "--device", "no such device").code == 4


def test_interrupt_keeps_what_was_printed() -> None:
    args = command(["run", MODEL, "Once upon a time", "--max-tokens", "1000", "--seed", "1"])
    with subprocess.Popen(
        args, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
    ) as running:
        assert running.stdout is not None
        first = running.stdout.read(1)
        running.send_signal(signal.SIGINT)
        try:
            out, err = running.communicate(timeout=60)
        finally:
            running.kill()
    assert running.returncode == 130, err
    assert first and (first + out).endswith(b"\n")
    assert b"Traceback" not in err and b"cancelled" in err


def test_chat_at_a_terminal() -> None:
    pty = pytest.importorskip("pty")
    leader, follower = pty.openpty()
    args = command(["chat", MODEL, "--greedy", "--max-tokens", "2"])
    with subprocess.Popen(args, env=environment(), stdin=follower, stdout=follower, stderr=subprocess.PIPE) as running:
        os.close(follower)
        os.write(leader, b"/bogus\n/quit\n")  # typed ahead
        try:
            _, err = running.communicate(timeout=60)
        finally:
            running.kill()
            os.close(leader)
    assert running.returncode == 0, err
    assert b"Commands: /reset" in err and b"no command /bogus" in err and b"Traceback" not in err


def test_a_reader_that_goes_away() -> None:
    with subprocess.Popen(
        command(["inspect", MODEL]), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as running:
        assert running.stdout is not None and running.stderr is not None
        running.stdout.close()
        err = running.stderr.read()
    assert running.returncode == 1 and err == b""


# ---- small parts


def test_clean() -> None:
    assert clean("a\x1b[31mb\nc") == "a�[31mb�c"


def test_bar() -> None:
    bar, legend = bar_lines([("weights", 75), ("cache", 24), ("small", 1)], 100)
    assert bar.count("█") == 45 and bar.count("▓") == 14 and bar.count("▒") == 1
    assert legend == "█ weights   ▓ cache   ▒ small"
