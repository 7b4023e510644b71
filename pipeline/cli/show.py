"""Plans and results as text for people and as JSON for programs."""

import json
from contextlib import suppress
from typing import Any

from model.config import SIZES
from pipeline.cli.presence import how_far, life, moment, presence
from pipeline.cli.show_log import segment
from pipeline.engine import keys, log
from pipeline.engine.engine import Engine, Planned
from pipeline.engine.log import Entry
from pipeline.engine.unsent import candidates
from pipeline.errors import StoreError
from pipeline.redact import redacted
from pipeline.stages import STAGES
from pipeline.store.store import Store
from pipeline.ui import age, human_bytes, human_seconds


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Left-aligned columns as wide as their widest cell."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
        for row in [header, *rows]
    )
    return "\n".join(lines)


def size_of(result: Entry | None) -> int:
    """Bytes of all files of a result."""
    return sum(result.digests.values()) if result else 0


def describe(engine: Engine, planned: Planned) -> dict[str, Any]:
    """A stage as JSON values: key, state, seconds, bytes, and the metrics of its result.

    ``where``, ``last_beat``: of the process that works on it. ``origin``: the other store that has
    the result. ``unsent_step``: of a checkpoint that is on this machine and not in the store yet.
    ``segments``, of train: who computed which part of it, as far as the newest checkpoint goes.
    """
    told: dict[str, Any] = {"key": planned.key, "state": "to run"}
    told |= dict.fromkeys(("seconds", "bytes", "where", "last_beat", "unsent_step", "origin"))
    state, result = planned.state, planned.result
    if planned.stage.name == "train":
        told["segments"] = [] if result else _segments(engine.store, state)
    if planned.key is None or state is None:
        waiting = list(planned.stage.upstream)
        told |= {"state": "waiting", "for": waiting or ["its source"]}
        return told
    if result is not None:
        told |= {"state": "done", "seconds": result.body["seconds"], "bytes": size_of(result)}
        told |= result.body["metrics"]
        told["origin"] = planned.origin.place if planned.origin else None
        return told
    told["unsent_step"] = unsent_step(engine.store, planned.key, state)
    if planned.missing:
        told |= {"state": "to run", "why": f"blob {planned.missing[0][:12]} is missing"}
    elif state.owner is not None:
        told |= presence(engine.store, planned.key, state.owner)
    elif (failure := state.failure) is not None:
        told |= {"state": "failed", "why": failure}
    elif state.checkpoints or told["unsent_step"] is not None:
        told |= {"state": "interrupted"}
    if state.checkpoints:
        step, steps = state.checkpoints[-1].body["step"], engine.recipe.train.steps
        told |= {"checkpoint_step": step, "steps": steps}
    return told


def _segments(store: Store, state: log.State | None) -> list[dict[str, Any]]:
    """Who has computed what the newest checkpoint holds; nothing, if that cannot be read."""
    files = state.checkpoints[-1].body["files"] if state and state.checkpoints else {}
    if "segments.json" not in files:
        return []
    with suppress(StoreError, OSError, ValueError):
        path = store.blob(files["segments.json"]["digest"])
        return json.loads(path.read_text(encoding="utf-8"))
    return []


def unsent_step(store: Store, key: str, state: log.State) -> int | None:
    """The step of a checkpoint that waits on this machine and would be gone on from."""
    position, body = next(candidates(store, key, state.checkpoints), (0, {}))
    return body["step"] if position is None else None


def status(engine: Engine, plan: list[Planned]) -> dict[str, Any]:
    """The whole plan as JSON values."""
    tree = engine.recipe.tree()
    tree["data"]["source"] = redacted(tree["data"]["source"])
    return {
        "store": engine.store.place,
        "recipe": tree,
        "stages": {planned.stage.name: describe(engine, planned) for planned in plan},
    }


def status_text(told: dict[str, Any]) -> str:
    """The same as a table."""
    recipe = told["recipe"]
    rows = [
        (
            name,
            stage["state"],
            human_seconds(stage["seconds"]) if stage["seconds"] is not None else "",
            human_bytes(stage["bytes"]) if stage["bytes"] is not None else "",
            (stage["key"] or "")[:12],
            _detail(stage),
        )
        for name, stage in told["stages"].items()
    ]
    heading = f"{recipe['size']} on {recipe['data']['source']}, store {told['store']}"
    parts = [heading, table(("stage", "state", "time", "size", "key", ""), rows)]
    segments = told["stages"].get("train", {}).get("segments", [])
    if len(segments) > 1:
        parts.append("\n".join(["train was computed in parts:", *map(segment, segments)]))
    return "\n\n".join(parts)


def _detail(stage: dict[str, Any]) -> str:
    """What is to say of a stage in a few words."""
    if stage["state"] == "waiting":
        return f"for {', '.join(stage['for'])}"
    if "why" in stage:
        return "; ".join(filter(None, [stage["why"], _goes_on(stage)]))
    if stage["state"] in ("running", "silent"):
        parts = [how_far(stage["progress"])] if stage["progress"] else []
        parts += [f"by {stage['owner']}", f"on {stage['where']} since {moment(stage['since'])}"]
        return ", ".join([*parts, *filter(None, [life(stage)])])
    if stage.get("unsent_step") is not None:
        return f"step {stage['unsent_step']:,} waits here to be sent"
    if words := _goes_on(stage):
        return words
    place = [f"in {stage['origin']}"] if stage.get("origin") else []
    return ", ".join([*place, *filter(None, [_metrics(stage)])])


def _goes_on(stage: dict[str, Any]) -> str:
    """Where an unfinished stage goes on from, if it has a checkpoint."""
    if "checkpoint_step" not in stage:
        return ""
    return f"goes on from step {stage['checkpoint_step']:,} of {stage['steps']:,}"


def _metrics(stage: dict[str, Any]) -> str:
    if "stopped_because" in stage:
        return f"{stage['vocab_size']:,} tokens: {stage['stopped_because']}"
    if "bits_per_byte" in stage:
        return metrics_line(stage)
    for name, words in (("train_tokens", "train tokens"), ("train_bytes", "train bytes")):
        if name in stage:
            return f"{stage[name]:,} {words}"
    if "parameters" in stage:
        return f"{stage['parameters']:,} parameters, {stage['steps']:,} steps"
    return ""


def metrics_line(metrics: dict[str, Any]) -> str:
    return (
        f"{metrics['bits_per_byte']:.4f} bits per byte "
        f"({metrics['bits_per_byte_disjoint']:.4f} disjoint), "
        f"perplexity {metrics['perplexity']:.2f} per token"
    )


def summary(engine: Engine, report: list[tuple[Planned, bool]]) -> str:
    """What a run ends with: a table of its stages, the metrics, the samples, the paths."""
    rows = []
    for planned, ran in report:
        assert planned.result is not None
        rows.append(
            (
                planned.stage.name,
                "done" if ran else "cached",
                human_seconds(planned.result.body["seconds"]),
                human_bytes(size_of(planned.result)),
                _detail({"state": "done", **planned.result.body["metrics"]}),
            )
        )
    parts = [table(("stage", "", "time", "size", ""), rows)]
    by_name = {planned.stage.name: planned for planned, _ in report}
    if "sample" in by_name:
        parts.append(samples_text(load_json(engine, by_name["sample"], "samples.json")))
    if "train" in by_name:
        parts.append(paths(engine, by_name))
    return "\n\n".join(parts)


def load_json(engine: Engine, planned: Planned, name: str) -> Any:
    return json.loads(engine.file(planned, name).read_text(encoding="utf-8"))


def samples_text(told: dict[str, Any]) -> str:
    """The samples of one prompt, each under the name of its method."""
    parts = [f"prompt: {told['prompt']!r}"]
    for sample in told["samples"]:
        settings = [f"{k} {v}" for k, v in sample.items() if k not in ("method", "text")]
        parts.append(
            f"\n--- {sample['method']} ({', '.join(settings)})\n{told['prompt']}{sample['text']}"
        )
    return "\n".join(parts)


def paths(engine: Engine, by_name: dict[str, Planned]) -> str:
    """Where the files of a run lie."""
    wanted = (
        ("weights", "train", "weights.safetensors"),
        ("best weights", "train", "best.safetensors"),
        ("tokenizer", "tokenizer", "tokenizer.json"),
    )
    lines = []
    for label, stage, file in wanted:
        result = by_name[stage].result
        assert result is not None
        lines.append((label, str(engine.store.blob_path(result.body["files"][file]["digest"]))))
    return table(("file", "path"), lines)


def explain(engine: Engine, planned: Planned, others: list[log.State]) -> list[str]:
    """Why a stage is in its state, a line each; ``others`` are logs of other keys of the stage."""
    told = describe(engine, planned)
    lines = [
        f"{planned.stage.name}: {told['state']}" + (f" ({told['why']})" if "why" in told else "")
    ]
    if told["state"] == "waiting":
        return [f"{lines[0]} for {', '.join(told['for'])}, whose result decides its key"]
    lines[0] += f", key {planned.key[:12]}" if planned.key else ""
    if "checkpoint_step" in told:
        lines.append(f"goes on from the checkpoint of step {told['checkpoint_step']:,}")
    assert planned.record is not None
    nearest = [
        (keys.differences(state.record, planned.record), state)
        for state in others
        if state.record is not None
    ]
    if not nearest:
        if told["state"] != "done":
            been = planned.state is not None and planned.state.entries
            never = "it has never run on this store"
            lines.append("there is no other run of it to compare with" if been else never)
        return lines
    # fewest differences first; of equals the youngest
    nearest.sort(key=lambda pair: (len(pair[0]), age(pair[1].entries[0].body["at"])))
    changes, state = nearest[0]
    when = state.entries[0].body["at"]
    lines.append(f"compared with key {keys.key(state.record or {})[:12]} of {when}:")
    return lines + [f"  {change}" for change in changes]


def other_logs(engine: Engine, planned: Planned) -> list[log.State]:
    """The logs of all other keys of the same stage on this store."""
    found = []
    for key in log.keys(engine.store):
        state = log.read(engine.store, key)
        if key != planned.key and state.record and state.record["stage"] == planned.stage.name:
            found.append(state)
    return found


def graph() -> str:
    """The stages, what each takes in, and from where."""
    rows = []
    for stage in STAGES:
        takes = {name: [] for name in stage.upstream}
        for name in stage.inputs:
            upstream, file = name.split("/")
            takes[upstream].append(file)
        told = "; ".join(f"{name} ({', '.join(files)})" for name, files in takes.items())
        rows.append((stage.name, told or "the data source", ", ".join(stage.reads)))
    return table(("stage", "takes", "reads of the recipe"), rows)


def sizes_text(vocab_sizes: dict[str, int]) -> str:
    """The four sizes with exact parameter counts at their recipe's largest vocabulary."""
    rows = []
    for name, config in SIZES.items():
        vocab = vocab_sizes[name]
        rows.append(
            (
                name,
                f"{config.layers} x {config.width}",
                str(config.heads),
                str(config.feed_forward),
                str(config.context),
                f"{config.trunk_parameters():,}",
                f"{vocab:,}",
                f"{config.parameters(vocab):,}",
            )
        )
    header = (
        "size",
        "layers x width",
        "heads",
        "feed-forward",
        "context",
        "trunk parameters",
        "vocabulary up to",
        "all parameters",
    )
    return table(header, rows)
