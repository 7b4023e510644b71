"""Everything that only a GPU can show, in one script and under ten minutes.

    python bench/gpu.py tinyshakespeare.txt --nanogpt DIR       DIR: a clone of karpathy/nanoGPT
    python bench/gpu.py text.txt --toy                          on a CPU: does it still run?

* training: tokens a second of medium and large beside nanoGPT of the same shape, and their MFU
  against the product of two large random matrices, measured here; what kernels a step of medium is;
* quality: `small` on TinyShakespeare, with its time, and the classic recipe beside it;
* exactness: a run that is killed and goes on ends with the same bytes, with --deterministic;
* precision: float16 with its scaler beside bfloat16 and float32, step by step.

Each part runs in processes of its own, so one that fails leaves a line that says so and no figure.
Contenders warm up side by side; when all have, they are timed in turn. Decoding has a script of its
own, decode.py.
"""

import argparse
import fcntl
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, ROOT, result_file, save, today
from contenders import Shape, Step, kernels, nanogpt, ours

MAIN = "from pipeline.cli.main import main; main()"
MICRO_BATCH = {"tiny": 4, "medium": 32, "large": 8}  # all four contenders fit into 80 GB
VOCAB = 32_000
EVALUATED = ("bits_per_byte", "bits_per_byte_disjoint", "perplexity", "tokens")
TRAINED = ("seconds", "steps", "tokens_per_second", "best_step", "precision", "segments")
Run = Callable[[argparse.Namespace], Any]


def device_of(options: argparse.Namespace) -> torch.device:
    return torch.device("cpu" if options.toy else "cuda")


# how fast it trains


def shape_of(size: str, batch: int, vocab: int) -> Shape:
    from model.config import SIZES

    config = SIZES[size]
    micro_batch = min(MICRO_BATCH[size], batch)
    return Shape(
        config.layers, config.width, config.heads, config.context, vocab, batch, micro_batch
    )


def worker(options: argparse.Namespace) -> None:
    """Warm up, wait until all have and for one's turn, train; prints what it took as JSON."""
    size, who, batch, steps, vocab, folder = options.worker
    shape, device = shape_of(size, int(batch), int(vocab)), device_of(options)
    began = time.perf_counter()
    step = contender(who, shape, device, options.nanogpt)
    first = step().item()
    ready = time.perf_counter() - began
    step().item()
    Path(folder, f"warm {size} {who}").touch()
    while not Path(folder, "go").exists():  # nobody else may be at work on the GPU
        time.sleep(0.05)
    with open(Path(folder, "turn"), "w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        step().item()  # the clocks of an idle GPU are low
        start = time.perf_counter()
        losses = [step() for _ in range(int(steps))]
        last = losses[-1].item()  # waits for all
        seconds = (time.perf_counter() - start) / int(steps)
        told = {"tokens_per_second": shape.tokens / seconds, "seconds_a_step": seconds}
        told |= {"first_step_after": ready, "losses": [first, last]}
        if device.type == "cuda":
            told["peak_bytes"] = torch.cuda.max_memory_allocated()
        if size != "large":  # has so many kernels that listing them takes longer than training
            told["kernels"] = kernels(step)
    print(json.dumps(told))


def contender(who: str, shape: Shape, device: torch.device, folder: str) -> Step:
    if who == "ours":
        return ours(shape, "bf16", device, compiled=device.type == "cuda")
    return nanogpt(shape, "bf16", device, folder, compiled=device.type == "cuda")


def training(options: argparse.Namespace) -> dict[str, Any]:
    """Tokens a second and MFU of every contender at every size."""
    from model.config import SIZES
    from pipeline.cards import flops_per_token

    sizes = ("tiny",) if options.toy else ("medium", "large")
    batch, steps, vocab = (4, 1, 512) if options.toy else (256, 4, VOCAB)
    who = ["ours", *(["nanogpt"] if options.nanogpt else [])]
    peak = matrix_rate(device_of(options), 512 if options.toy else 8192)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(8) as pool:
        futures = {
            (size, name): pool.submit(_worker, options, size, name, batch, steps, vocab, folder)
            for size in sizes
            for name in who
        }
        while not all(
            future.done() or Path(folder, f"warm {size} {name}").exists()
            for (size, name), future in futures.items()
        ):
            time.sleep(0.1)
        Path(folder, "go").touch()
        rows = {key: future.result() for key, future in futures.items()}
    told: dict[str, Any] = {"matmul_tflops": peak / 1e12, "batch": batch, "vocabulary": vocab}
    for (size, name), row in rows.items():
        if "failed" not in row:
            operations = flops_per_token(SIZES[size], vocab)
            row["mfu_of_measured"] = row["tokens_per_second"] * operations / peak
        told.setdefault(size, {"micro_batch": MICRO_BATCH[size]})[name] = row
    for size in sizes:
        both = [told[size].get(name, {}).get("tokens_per_second") for name in ("ours", "nanogpt")]
        if all(both):
            told[size]["ours_over_nanogpt"] = both[0] / both[1]
    return told


def _worker(options: argparse.Namespace, *words: object) -> dict[str, Any]:
    command = [sys.executable, __file__, str(options.corpus), "--nanogpt", options.nanogpt]
    command += ["--toy"] if options.toy else []
    return run_json([*command, "--worker", *map(str, words)])


def matrix_rate(device: torch.device, size: int) -> float:
    """Operations a second of a product of random bfloat16 matrices: the median of many."""
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    taken = []
    for _ in range(30):
        start = time.perf_counter()
        (left @ right)[0, 0].item()  # waits
        taken.append(time.perf_counter() - start)
    return 2 * size**3 / statistics.median(taken[5:])


# how good it gets


def pipeline(*words: object) -> list[str]:
    return [sys.executable, "-c", MAIN, "run", *map(str, words)]


def run_json(command: list[str]) -> dict[str, Any]:
    """What a command prints last as JSON, or why it failed."""
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["?"])[-1]}
    return json.loads(done.stdout if "\n{" not in done.stdout else done.stdout.splitlines()[-1])


def settings(options: argparse.Namespace, *pairs: str) -> list[str]:
    toy = (
        *("tokenizer.vocab_size=300", "model.layers=1", "model.width=32", "model.heads=2"),
        *("model.feed_forward=64", "model.context=32", "train.batch=4", "train.eval_every=100"),
    )
    return [word for pair in (*pairs, *(toy if options.toy else ())) for word in ("--set", pair)]


def quality(options: argparse.Namespace, *words: str) -> dict[str, Any]:
    """`small` on the text by its own recipe: what it reaches, and in what time."""
    given = settings(options, *(["train.steps=4"] if options.toy else []))
    with tempfile.TemporaryDirectory() as store:
        told = run_json(
            pipeline(
                *("evaluate", "--json", "--size", "small", "--data", options.corpus),
                *("--store", store, *words, *given),
            )
        )
    if "failed" in told:
        return told
    stages = told["stages"]
    told = {name: stages["evaluate"][name] for name in EVALUATED}
    told |= {name: stages["train"][name] for name in TRAINED}
    for segment in told["segments"]:
        del segment["machine"]  # a host's name
    return {**told, "vocabulary": stages["tokenizer"]["vocab_size"]}


def classic(options: argparse.Namespace) -> dict[str, Any]:
    """The original's recipe, with the vocabulary and the number of steps that the text bears."""
    pairs = ("tokenizer.vocab_size=1024", "train.warmup=20", "train.steps=200")
    words = [word for pair in pairs for word in ("--set", pair)]
    return quality(options, "--recipe", "classic", *words)


# whether it is exact


def exactness(options: argparse.Namespace) -> dict[str, Any]:
    """sha256 of the weights of an undisturbed run, and of one that is killed again and again."""
    draw = random.Random(20261126)
    steps = 12 if options.toy else 600
    pairs = (f"train.steps={steps}", "model.dropout=0.1", "train.ema=0.9", "train.eval_every=100")
    given = settings(options, *pairs)
    given += ["--deterministic", "--checkpoint-every", "1s", "--micro-batch", "8"]

    def command(store: str, stage: str = "train") -> list[str]:
        return pipeline(stage, "--size", "tiny", "--data", options.corpus, "--store", store, *given)

    def digest(store: str) -> str:
        run_json([*command(store), "--json"])
        return sha256(result_file(store, "train", "weights.safetensors").read_bytes()).hexdigest()

    with tempfile.TemporaryDirectory() as folder:
        stores = [f"{folder}/{name}" for name in ("straight", "killed", "again")]
        kills = 0
        run_json([*command(stores[1], "encode"), "--json"])  # kills shall strike the training
        for _ in range(2 if options.toy else 3):
            process = subprocess.Popen(
                command(stores[1]), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT
            )
            try:
                process.wait(draw.uniform(3, 6) if options.toy else draw.uniform(10, 18))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                kills += 1
        with ThreadPoolExecutor(3) as pool:
            straight, killed, again = pool.map(digest, stores)
    return {
        "steps": steps,
        "kills": kills,
        "sha256": straight,
        "killed_equals": killed == straight,
        "repeated_equals": again == straight,
    }


# whether precision matters


def precision(options: argparse.Namespace) -> dict[str, Any]:
    """The losses of one run in each type: how far from each other, and from another seed's."""
    steps = 6 if options.toy else 300
    names = ("fp32", "bf16") if options.toy else ("fp32", "bf16", "fp16")
    given = settings(options, f"train.steps={steps}", "train.eval_every=1000")
    runs = {name: ("--precision", name) for name in names}
    runs["another seed"] = ("--precision", "bf16", "--set", "train.seed=1")

    with tempfile.TemporaryDirectory() as folder:

        def losses(name: str) -> list[float] | str:
            store = f"{folder}/{name.replace(' ', '-')}"
            told = run_json(
                pipeline(
                    *("train", "--json", "--size", "tiny", "--data", options.corpus),
                    *("--store", store, *given, *runs[name]),
                )
            )
            if "failed" in told:
                return told["failed"]
            history = result_file(store, "train", "history.json")
            return json.loads(history.read_text(encoding="utf-8"))["losses"]

        with ThreadPoolExecutor(4) as pool:
            found = dict(zip(runs, pool.map(losses, runs)))
    told: dict[str, Any] = {"steps": steps, "failed": {}}
    for name, values in found.items():
        if isinstance(values, str):
            told["failed"][name] = values
            continue
        half = values[steps // 2 :]
        told[name] = {"mean_loss_of_second_half": statistics.fmean(half)}
        if isinstance(found["bf16"], list):
            other = found["bf16"][steps // 2 :]
            away = [abs(one - two) for one, two in zip(half, other)]
            told[name]["mean_distance_from_bf16"] = statistics.fmean(away)
    return told


TIMED: dict[str, Run] = {"training": training, "quality": quality}  # one after the other
UNTIMED: dict[str, Run] = {"classic": classic, "exactness": exactness, "precision": precision}


def measured(part: Run, options: argparse.Namespace) -> dict[str, Any]:
    start = time.monotonic()
    try:
        told = part(options)
    except Exception as error:  # the others are worth having without it
        told = {"failed": f"{type(error).__name__}: {error}"}
    seconds = round(time.monotonic() - start, 1)
    return {**told, "seconds_of_this_part": seconds, "date": today()}


def kept(device: str) -> dict[str, Any]:
    """What was measured before on the same device, for who measures part after part."""
    path = RESULTS / "gpu.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found if found.get("device") == device else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--nanogpt", default="", help="without it nothing is put beside")
    parser.add_argument("--toy", action="store_true", help="small and on a CPU; nothing is saved")
    parser.add_argument("--only", choices={**TIMED, **UNTIMED}, action="append")
    parser.add_argument("--worker", nargs=6)
    options = parser.parse_args()
    options.corpus = options.corpus.resolve()
    if options.toy and not options.worker:
        short = Path(tempfile.mkdtemp()) / "short.txt"
        short.write_bytes(options.corpus.read_bytes()[:40_000])
        options.corpus = short
    if options.worker:
        worker(options)
        return
    told: dict[str, Any] = {"device": "cpu"}
    if not options.toy:
        told = {"device": torch.cuda.get_device_name()}
        told["capability"] = torch.cuda.get_device_capability()
    asked = options.only or [*TIMED, *UNTIMED]
    for name in filter(asked.__contains__, TIMED):
        told[name] = measured(TIMED[name], options)
        print(name, json.dumps(told[name], indent=1), flush=True)
    with ThreadPoolExecutor() as pool:
        parts = [(name, part) for name, part in UNTIMED.items() if name in asked]
        found = pool.map(lambda part: measured(part[1], options), parts)
        for (name, _), row in zip(parts, found):
            told[name] = row
            print(name, json.dumps(row, indent=1), flush=True)
    if not options.toy:
        save("gpu", {**kept(told["device"]), **told})


if __name__ == "__main__":
    sys.path.insert(1, str(ROOT))
    main()
