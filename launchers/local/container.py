"""What the container of a run is asked to be: its command, its mounts, its environment.

    /work/artifacts     the store, if it is a directory of this machine
    /data/NAME          the text, read-only, under its own name: suffixes say the format
    /from/0, /from/1    directories to take results from, read-only
    /recipe/NAME        the recipe file, read-only
    /cache              this machine's directory in front of places elsewhere
    /credentials/...    what the tools of clouds look for, read-only

Inside runs `pipeline run` with the caller's options; what they say of this machine's files is said
anew in the container's terms. Everything is decided here, before anything is built or started, so
that it can be shown (``Order.shown``) and a mistake costs nothing.
"""

import glob
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.data.sources import DATASETS
from pipeline.engine.engine import Engine
from pipeline.redact import redacted
from pipeline.store.places import caches

LABEL = "org.ignite-llm."
GRACE = 660  # seconds: sending a checkpoint is given ten minutes; then the engine kills
SHARED_MEMORY = "1g"  # the engine's 64 MiB are too few for processes that share tensors
_CREDENTIALS = (
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION"),
    *("AWS_DEFAULT_REGION", "AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "HF_TOKEN"),
)
_GOOGLE = "GOOGLE_APPLICATION_CREDENTIALS"


@dataclass(frozen=True)
class Mount:
    """A file or directory of this machine, and where the container sees it."""

    source: Path
    target: str
    read_only: bool = True


@dataclass(frozen=True)
class Order:
    """All that the engine is told of a container."""

    name: str
    image: str
    command: tuple[str, ...]
    mounts: tuple[Mount, ...]
    environment: dict[str, str]
    passed: frozenset[str]  # names in ``environment`` whose values are the caller's secrets
    labels: dict[str, str]
    user: str | None = None
    gpus: dict[str, Any] | None = field(default=None)  # as engine.device_request says

    def create(self, client: Any) -> None:
        """Make the container; it does not run yet."""
        from docker.types import DeviceRequest
        from docker.types import Mount as Bind

        mounts = [
            Bind(each.target, str(each.source), type="bind", read_only=each.read_only)
            for each in self.mounts
        ]
        client.api.create_container(
            self.image,
            list(self.command),
            name=self.name,
            hostname=self.name,  # so that the owner that a log names is this container
            user=self.user,
            environment=self.environment,
            labels=self.labels,
            stop_timeout=GRACE,
            host_config=client.api.create_host_config(
                mounts=mounts,
                shm_size=SHARED_MEMORY,
                device_requests=[DeviceRequest(**self.gpus)] if self.gpus else None,
            ),
        )

    def shown(self) -> dict[str, Any]:
        """The same as JSON values, without secrets."""
        return {
            "name": self.name,
            "image": self.image,
            "command": [redacted(word) for word in self.command],
            "user": self.user,
            "environment": {
                name: "***" if name in self.passed else value
                for name, value in self.environment.items()
            },
            "mounts": [
                {"source": str(each.source), "target": each.target, "read_only": each.read_only}
                for each in self.mounts
            ],
            "labels": self.labels,
            "gpus": self.gpus,
            "shm_size": SHARED_MEMORY,
            "stop_timeout": GRACE,
        }


def order(
    engine: Engine,
    options: dict[str, Any],
    machine: list[str],
    image: str,
    user: str | None,
    gpus: dict[str, Any] | None,
) -> Order:
    """The container for a recipe; ``options`` are those of ``recipe_options``.

    ``machine`` are the words for `pipeline run` that describe the machine. Raises ValueError for
    files and directories that are not there.
    """
    recipe_words, mounts = _recipe(engine, options)
    store_words, store_mounts = _stores(engine, options)
    environment, credentials = _credentials(engine, options)
    words = ["run", *recipe_words, *store_words, *machine]
    local = engine.store.remote is None
    return Order(
        name=f"ignite-{engine.recipe.size}-{secrets.token_hex(3)}",
        image=image,
        command=tuple(words),
        mounts=(*store_mounts, *mounts, Mount(caches().absolute(), "/cache", False), *credentials),
        environment={"IGNITE_CACHE": "/cache", "IGNITE_AGAIN": "the same command", **environment},
        passed=frozenset(name for name in environment if environment[name] == os.environ.get(name)),
        labels={
            f"{LABEL}store": str(engine.store.root.resolve()) if local else engine.store.place,
            f"{LABEL}size": engine.recipe.size,
            f"{LABEL}data": redacted(engine.recipe.data.source),
        },
        user=user,
        gpus=gpus,
    )


def _recipe(engine: Engine, options: dict[str, Any]) -> tuple[list[str], list[Mount]]:
    """The options that choose the recipe. Where the text lies is always said: it lies elsewhere
    inside, whoever named it (an option, the recipe file, the last run)."""
    source, mounts = inside(engine)
    words = ["--size", options["size"]] if options["size"] else []
    if options["file"]:
        file = Path(options["file"])
        mounts.append(Mount(file.resolve(), f"/recipe/{file.name}"))
        words += ["--recipe", f"/recipe/{file.name}"]
    # --data would begin a recipe of its own where the last run's was meant
    fresh = options["size"] or options["file"] or options["data"]
    words += ["--data", source] if fresh else ["--set", f"data.source={source}"]
    if options["text_field"]:
        words += ["--text-field", options["text_field"]]
    for setting in options["settings"]:
        if setting.partition("=")[0].strip() != "data.source":
            words += ["--set", setting]
    return words, mounts


def inside(engine: Engine) -> tuple[str, list[Mount]]:
    """How the container names the text, and what must be mounted for it.

    A text that is not there stays as it is named: its stage may be done, or the store may know its
    digest. Raises ValueError, as a run would, if it does not.
    """
    spec = engine.recipe.data.source
    for scheme in ("file://", "local://"):
        spec = spec.removeprefix(scheme)
    if spec in DATASETS or "://" in spec:
        return spec, []
    path = Path(os.path.expanduser(spec))
    if spec and path.exists():
        name = path.resolve().name if path.is_dir() else path.name
        target = f"/data/{name or 'root'}"
        return target, [Mount(path.resolve(), target)]
    if glob.has_magic(spec) and next(glob.iglob(str(path), recursive=True), None):
        return _pattern(path)
    engine.plan()
    return str(path.absolute()), []


def _pattern(path: Path) -> tuple[str, list[Mount]]:
    """All of the longest directory that is the same for every match."""
    plain = next(at for at, part in enumerate(path.parts) if glob.has_magic(part))
    above, rest = Path(*path.parts[:plain]).resolve(), path.parts[plain:]
    target = f"/data/{above.name or 'root'}"
    return "/".join([glob.escape(target), *rest]), [Mount(above, target)]


def _stores(engine: Engine, options: dict[str, Any]) -> tuple[list[str], list[Mount]]:
    words, mounts = ["--store", options["store"]], []
    if engine.store.remote is None:
        words = ["--store", "artifacts"]
        mounts.append(Mount(engine.store.root.resolve(), "/work/artifacts", False))
    for at, (place, store) in enumerate(zip(options["upstreams"], engine.upstreams)):
        if store.remote is not None:
            words += ["--from", place]
            continue
        words += ["--from", f"/from/{at}"]
        mounts.append(Mount(store.root.resolve(), f"/from/{at}"))
    return words, mounts


def _credentials(engine: Engine, options: dict[str, Any]) -> tuple[dict[str, str], list[Mount]]:
    """What opens the places elsewhere; nothing, if all lies here or is open to everybody."""
    source = engine.recipe.data.source
    elsewhere = "://" in source and not source.startswith(("file:", "local:", "http:", "https:"))
    if not elsewhere and all(store.remote is None for store in (engine.store, *engine.upstreams)):
        return {}, []
    found = {
        name: value
        for name, value in os.environ.items()
        if name in _CREDENTIALS or name.startswith("AZURE_STORAGE_")
    }
    mounts = []
    if (aws := Path.home() / ".aws").is_dir():
        mounts.append(Mount(aws.resolve(), "/credentials/aws"))
        found["AWS_SHARED_CREDENTIALS_FILE"] = "/credentials/aws/credentials"
        found["AWS_CONFIG_FILE"] = "/credentials/aws/config"
    if (google := Path(os.environ.get(_GOOGLE, ""))).is_file():
        mounts.append(Mount(google.resolve(), "/credentials/google.json"))
        found[_GOOGLE] = "/credentials/google.json"
    return found, mounts
