"""`python -m adam_jax watch RUN`: the curves of a run, live, in a terminal or as a page."""

import json
import math
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any

from adam_jax._types import Named
from adam_jax.inspect.records import record_of, with_floats

Curve = list[tuple[float, float]]  # Steps, which rise, and values.
FIRST = "loss accuracy update_to_parameter gradient_rms update_rms lost_to_rounding clipped skipped"
HIDDEN = ("step", "epoch", "seconds", "parameter_rms", "cosine")
SECONDS, POINTS, BLOCKS = 2, 500, "▁▂▃▄▅▆▇█"


def views(run: Path) -> Iterator[Named]:
    """What to show of a file, or of the files of a folder, each time as far as they are written."""
    files: dict[Path, Iterator[dict[str, dict[str, Curve]]]] = {}
    while True:
        panels: dict[str, dict[str, Curve]] = {panel: {} for panel in FIRST.split()}
        paths = sorted(run.glob("*.jsonl")) if run.is_dir() else [run] * run.is_file()
        for path in paths:
            for panel, curves in next(files.setdefault(path, _follow(path))).items():
                panels.setdefault(panel, {}).update(curves)
        nonzero = {k: v for k, v in panels.items() if any(x for c in v.values() for _, x in c)}
        age = time.time() - max((path.stat().st_mtime for path in paths), default=0)
        state = f"written {age:,.0f} s ago" if nonzero else "waiting for records"
        yield {"run": str(run), "state": state, "panels": nonzero}


def _follow(path: Path) -> Iterator[dict[str, dict[str, Curve]]]:
    """The curves in a file, by panel and name; each time it reads the whole lines that are new."""
    panels: dict[str, dict[str, Curve]] = defaultdict(lambda: defaultdict(list))
    end, last = 0, b""
    while True:
        with path.open("rb") as file:
            file.seek(end - len(last))
            if file.read(len(last)) != last:  # It was truncated or replaced.
                end = file.seek(0)
                panels.clear()
            for line in file:
                if line.endswith(b"\n"):
                    end, last = end + len(line), line
                    _add(record_of(line) or {"step": None}, panels)
        yield panels


def _add(record: Named, panels: dict[str, dict[str, Curve]]) -> None:
    step, groups = record["step"], record.pop("groups", {})
    if not isinstance(step, int | float) or not math.isfinite(step):
        return
    for curve in (curve for curves in panels.values() for curve in curves.values()):
        while curve and curve[-1][0] >= step:  # The run was rewound.
            curve.pop()
    numbers = [(panel, group, x) for group in groups for panel, x in groups[group].items()]
    for name, x in record.items():
        panel = name.rsplit("_", 1)[-1] if name.endswith(("_loss", "_accuracy")) else name
        numbers.append((panel, name, x.get("total") if isinstance(x, dict) else x))
    for panel, name, x in numbers:
        x = None if panel in HIDDEN else with_floats(x)
        if isinstance(x, int | float):
            curve = panels[panel][name]
            curve.append((step, x))
            if len(curve) > 2 * POINTS:  # Keeps the lowest and the highest of each range.
                ends = [{part[0], part[-1]} for part in _ranges(curve, POINTS // 2)]
                curve[:] = sorted((step, x) for end in ends for _, x, step in end)


def _ranges(curve: Curve, count: int) -> list[list[tuple[bool, float, float]]]:
    """Points (is NaN, value, step), sorted, of each of `count` ranges of steps that has any."""
    parts, first = defaultdict(list), curve[0][0]
    span = curve[-1][0] - first or 1
    for step, x in curve:
        parts[int((step - first) * (count - 1) / span)].append((x != x, x, step))
    return [sorted(part) for part in parts.values()]


def sparkline(curve: Curve, width: int) -> str:
    """The highest values in that many characters, on a log scale if positive; × is not finite."""
    values = [part[-1][1] for part in _ranges(curve, width)]
    finite = [x for x in values if math.isfinite(x)] or [0.0]
    scale = math.log if min(finite) > 0 else float
    low, high = scale(min(finite)), scale(max(finite))
    level = lambda x: BLOCKS[round((scale(x) - low) / (high - low or 1) * 7)]  # noqa: E731
    return "".join(level(x) if math.isfinite(x) else "×" for x in values)


def table(view: Named, width: int) -> Any:
    """What a terminal of that width shows."""
    from rich.table import Table
    from rich.text import Text

    rows = Table("", "", "now", title=Text(f"{view['run']}, {view['state']}"), box=None)
    curves: dict[str, Curve] = {}
    for panel, its in view["panels"].items():
        curves |= {name if panel in name else f"{panel} {name}": its[name] for name in its}
    room = max(8, width - max(map(len, curves), default=0) - 16)
    for name, curve in curves.items():
        now = Text(f"{curve[-1][1]:.3g}", "" if math.isfinite(curve[-1][1]) else "red")
        rows.add_row(Text(name), sparkline(curve, room), now)
    return rows


def server(run: Path, port: int) -> ThreadingHTTPServer:
    """Serves the page, and the view that it draws, to this machine only."""
    page, shown, lock = Path(__file__).with_name("watch.html").read_bytes(), views(run), Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            kind, body = "text/html", page
            if self.path == "/view":
                with lock:
                    view = json.loads(json.dumps(next(shown)), parse_constant=str)
                kind, body = "application/json", json.dumps(view).encode()
            # A foreign site could give 127.0.0.1 its own name, to read the run.
            local = self.headers.get("Host", "").split(":")[0] in ("127.0.0.1", "localhost")
            self.send_response(200 if local else 403)
            self.send_header("Content-Type", kind)
            self.end_headers()
            self.wfile.write(body if local else b"")

        def log_message(self, format: str, *args: Any) -> None: ...

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)


def watch(run: Path, port: int | None) -> None:
    """Shows a run until ctrl-C."""
    try:
        if port is not None:
            with server(run, port) as serving:
                print(f"{run}: http://127.0.0.1:{serving.server_port}", flush=True)
                serving.serve_forever()
        from rich.live import Live

        with Live(auto_refresh=False) as live:
            for view in views(run):
                live.update(table(view, live.console.width), refresh=True)
                time.sleep(SECONDS)
    except ImportError:
        sys.exit('The table needs rich: pip install "adam_jax[watch]"; or add --page.')
    except (OSError, OverflowError) as error:
        sys.exit(f"watch: {error}{'' if port is None else '; --page 0 takes a free port'}")
    except KeyboardInterrupt:
        pass
