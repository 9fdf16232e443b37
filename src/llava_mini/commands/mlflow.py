"""`llava-mini mlflow`: show all runs in MLflow's web pages on this machine, and print the URL of the latest sweep."""

from __future__ import annotations

import os
import sys

from llava_mini.command_line.parser import Parser
from llava_mini.tracking.mlflow import MLflow, check_installed, latest_sweep


def mlflow(arguments: list[str], _config_dirs: tuple[str, ...] = ()) -> int:
    """Print the URLs and start MLflow's server here; for a remote one (MLFLOW_TRACKING_URI) only print."""
    parser = Parser(prog="llava-mini mlflow", description=__doc__)
    parser.add_argument("--port", type=int, default=5000, help="of the server on this machine (default 5000)")
    given = parser.parse_args(arguments)
    check_installed("llava-mini mlflow", "read report.html of a sweep")
    uri = MLflow().address(None)
    elsewhere = uri.startswith(("http://", "https://"))
    server = uri.rstrip("/") if elsewhere else f"http://127.0.0.1:{given.port}"
    addresses = latest_sweep(uri, server)
    for what, address in zip(("charts of the latest sweep", "all runs"), addresses or (None, server), strict=True):
        print(f"{what}: {address}" if address else "no sweep was found", flush=True)
    if not elsewhere:
        settings = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        command = [sys.executable, "-m", "mlflow", "ui", "--workers", "1", "--host", "127.0.0.1"]
        command += ["--port", str(given.port), "--backend-store-uri", uri]
        command += ["--uvicorn-opts", "--log-level warning"]  # else the log lines of requests bury the URLs
        os.execve(sys.executable, command, {**os.environ, **settings})
    return 0
