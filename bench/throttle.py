"""Does training wait for the store? Step time with a store behind 1 MB/s, beside a local one.

    python bench/throttle.py [--repeats 5] [--steps 300] [--data FILE]

Both sides run the same command, `pipeline run train` on the tiny recipe with a checkpoint every 15
seconds, in turn. One side's store is a directory. The other's is moto's S3 server behind a proxy
that lets 1 MB a second through: a checkpoint of 15 MB is then on its way nearly all the time.
Server and proxy are processes of their own on the same cores, so what they take counts against us.
"""

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

from common import save, spread

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from servers import make_bucket, s3_environment, s3_server

RATE = 1_000_000  # bytes a second
_PIECE = 50_000


def throttled(port: int, target: int) -> None:
    """Pass connections on to ``target``, their bytes at RATE over all of them."""
    turn = asyncio.Lock()

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, slow: bool) -> None:
        with contextlib.suppress(ConnectionError):
            while piece := await reader.read(_PIECE):
                if slow:
                    async with turn:
                        await asyncio.sleep(len(piece) / RATE)
                writer.write(piece)
                await writer.drain()
        writer.close()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        other_reader, other_writer = await asyncio.open_connection("127.0.0.1", target)
        await asyncio.gather(carry(reader, other_writer, True), carry(other_reader, writer, False))

    async def serve() -> None:
        server = await asyncio.start_server(connect, "127.0.0.1", port)
        await server.serve_forever()

    asyncio.run(serve())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def train(store: str, arguments: argparse.Namespace, environment: dict[str, str]) -> dict:
    """The metrics of one training, with what the log says of its checkpoints."""
    pipeline = str(Path(sys.executable).with_name("pipeline"))
    options = ["--store", store, "--data", str(arguments.data), "--size", "tiny"]
    options += ["--set", f"train.steps={arguments.steps}", "--set", "train.eval_every=100000"]
    where = {"env": {**os.environ, **environment}, "check": True, "capture_output": True}
    run = [pipeline, "run", "train", *options, "--checkpoint-every", "15s", "--json"]
    told = json.loads(subprocess.run(run, **where).stdout)["stages"]["train"]
    log = subprocess.run([pipeline, "log", "train", *options, "--json"], **where).stdout
    kinds = [json.loads(line)["kind"] for line in log.splitlines()]
    return {"tokens_per_second": told["tokens_per_second"], "sent": kinds.count("checkpoint")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--data", default="python-stdlib")
    arguments = parser.parse_args()
    sides: dict[str, list[dict]] = {"directory": [], "S3 at 1 MB/s": []}
    with s3_server() as endpoint, tempfile.TemporaryDirectory() as folder:
        make_bucket(endpoint, "bench")
        port = free_port()
        target = urlsplit(endpoint).port
        proxy = multiprocessing.Process(target=throttled, args=(port, target), daemon=True)
        proxy.start()
        time.sleep(1)
        environment = s3_environment(f"http://127.0.0.1:{port}") | {"IGNITE_CACHE": folder}
        for repeat in range(arguments.repeats):
            sides["directory"].append(train(f"{folder}/{repeat}", arguments, {}))
            remote = train(f"s3://bench/{repeat}", arguments, environment)
            sides["S3 at 1 MB/s"].append(remote)
            print({name: runs[-1] for name, runs in sides.items()})
        proxy.terminate()
    rates = {name: [run["tokens_per_second"] for run in runs] for name, runs in sides.items()}
    ratios = [near / far for near, far in zip(*rates.values())]
    print(f"step time with the slow store, times that without: {statistics.median(ratios):.4f}")
    save(
        "throttle",
        {
            "steps": arguments.steps,
            "tokens_per_second": {name: spread(values) for name, values in rates.items()},
            "checkpoints_sent": {name: [run["sent"] for run in r] for name, r in sides.items()},
            "step_time_ratio": spread(ratios),
        },
    )


if __name__ == "__main__":
    main()
