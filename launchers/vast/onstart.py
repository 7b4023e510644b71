"""The first program on a rented box: it fetches the bundle, starts it, and destroys the box.

It travels in the request that rents the box, as ``python3 -c`` of these lines without their
comments, compressed: Vast.ai takes 4000 bytes there. So it is short, knows nothing but Python's
own library, and is all that runs of us before the bundle has shown its hash.

It is two processes. The one that the container began with stays small, waits, and at the end
destroys the very instance that it runs on, with the key that Vast.ai puts into each instance and
that is good for this instance alone. It is the first because when the first ends, all of a
container ends: nobody behind it would be left to act. The other becomes the launch. Whatever
becomes of that one (done, an error, killed for its memory, over its time), the box goes.

    argv[1]             the errand, as JSON in base64
    IGNITE_SECRET_0..   pieces of base64 of JSON {NAME: value}: variables of the launch alone
    CONTAINER_ID, CONTAINER_API_KEY   this instance and its key, from Vast.ai
    VAST_URL            another service than Vast.ai's

The exit code is that of the launch; 69 if the box could not destroy itself.
"""

import base64
import contextlib
import hashlib
import importlib
import importlib.metadata
import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request

GRACE, LOOK = 2, 45  # seconds for the log: after a good end, and after one that somebody must read
TRIES = 5  # of a fetch, and refusals of the key until it is believed
STILL_BILLS = 69
OVER = 75  # as the pipeline says: interrupted, can go on
GOOGLE = "GOOGLE_APPLICATION_CREDENTIALS"
# what fsspec needs for each kind of store
NEEDS = {
    **dict.fromkeys(("s3", "s3a"), "s3fs"),
    **dict.fromkeys(("gs", "gcs"), "gcsfs"),
    **dict.fromkeys(("abfs", "abfss", "az"), "adlfs"),
}


def say(text):
    print("ignite:", text, flush=True)


def main():
    code = 1
    try:
        code = run()
    except Exception as error:  # a full disk, say: the box must go all the more
        say(f"{type(error).__name__}: {error}")
    say(f"the launch ended with exit code {code}: destroying this box")
    time.sleep(GRACE if code in (0, OVER) else float(os.environ.get("IGNITE_LOOK", LOOK)))
    sys.exit(code if destroy() else STILL_BILLS)


def run():
    """Do the errand in another process; the exit code of that."""
    errand = json.loads(base64.b64decode(sys.argv[1]))
    folder = os.path.join(tempfile.gettempdir(), "ignite-" + os.environ.get("CONTAINER_ID", "box"))
    os.makedirs(folder, exist_ok=True)
    left = time_left(folder, errand["seconds"])
    worker = os.fork()
    if not worker:
        work(errand, folder, left)

    def pass_on(number, _):  # a container that is stopped tells only its first process
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, number)

    signal.signal(signal.SIGTERM, pass_on)
    signal.signal(signal.SIGINT, pass_on)
    return wait(worker, left)


def time_left(folder, seconds):
    """Seconds until the box must be gone; a box that was paused and goes on has no more of them."""
    if seconds is None:
        return float("inf")
    note = os.path.join(folder, "began")
    try:
        with open(note) as file:
            began = float(file.read())
    except (OSError, ValueError):
        began = time.time()
        with open(note, "w") as file:
            file.write(str(began))
    return seconds - max(0, time.time() - began)


# the process that waits


def wait(worker, left):
    """The exit code of the launch, which is killed when its time is over."""
    end = time.monotonic() + left
    while True:
        ended, status = os.waitpid(-1, os.WNOHANG)  # orphans are ours as well
        if ended == worker:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
        if time.monotonic() >= end:
            say("its time is over")
            os.kill(worker, signal.SIGKILL)
            os.waitpid(worker, 0)
            return OVER
        if not ended:
            time.sleep(0.2)


def destroy():
    """Destroy this instance, again and again until it is gone; False if that cannot be."""
    box, key = (os.environ.get("CONTAINER_" + name) for name in ("ID", "API_KEY"))
    if not box or not key:
        say("CANNOT DESTROY THIS BOX: it was given no key. It bills until `launch reap`")
        return False
    pause, refused = 1, 0
    while True:
        gone, denied = ask("DELETE", box, key)
        if not gone:
            time.sleep(pause)
            gone, also = ask("GET", box, key)
            denied = denied and also
        if gone:
            return True
        refused = refused + 1 if denied else 0
        if refused == TRIES:
            say("CANNOT DESTROY THIS BOX: its key is refused. It bills until `launch reap`")
            return False
        pause = min(2 * pause, 60)


def ask(method, box, key):
    """Whether the service says that the box is gone, and whether it refuses the key."""
    service = os.environ.get("VAST_URL") or "https://console.vast.ai"
    request = urllib.request.Request(
        f"{service.rstrip('/')}/api/v0/instances/{box}/",
        method=method,
        data=b"{}" if method == "DELETE" else None,
        headers={"Authorization": "Bearer " + key, "Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            told = json.load(answer)
        return method == "GET" and told.get("instances", box) is None, False
    except urllib.error.HTTPError as error:
        say(f"{method}: HTTP {error.code}")
        return error.code in (404, 410), error.code in (401, 403)
    except (OSError, ValueError, AttributeError) as error:
        say(f"{method}: {type(error).__name__}")
        return False, False


# the process that becomes the launch


def work(errand, folder, left):
    secrets = {}
    try:
        secrets.update(variables())
        if text := secrets.pop(GOOGLE + "_JSON", ""):  # its libraries want a file
            secrets[GOOGLE] = os.path.join(folder, "google.json")
            with open(os.open(secrets[GOOGLE], os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
                file.write(text)
        os.environ.update(secrets)  # from here on this process alone has them
        if left < float("inf"):
            os.environ["IGNITE_ENDS"] = str(time.time() + left)  # installing takes of it
        if sys.version_info < (3, 11):  # noqa: UP036  (it is the image's Python that runs this)
            raise RuntimeError("the image's python3 is older than 3.11: use another image")
        install(errand["store"].partition("://")[0])
        place = unpack(fetch(errand), folder)
        with open(os.path.join(place, "errand.json"), "w") as file:
            json.dump(errand, file)
        os.chdir(place)
        os.environ["PYTHONPATH"] = place
        words = [sys.executable, "-m", "launchers.bootstrap", "errand.json"]
        os.execv(sys.executable, words)
    except BaseException as error:  # whatever it is, this process must not go on as the other
        text = f"{type(error).__name__}: {error}"
        for secret in secrets.values():
            text = text.replace(secret, "***")
        say(text)
    finally:
        os._exit(1)


def variables():
    """What was put into pieces, and no longer in the environment, nor the key of the box."""
    pieces, number = "", 0
    while piece := os.environ.pop(f"IGNITE_SECRET_{number}", ""):
        pieces, number = pieces + piece, number + 1
    os.environ.pop("CONTAINER_API_KEY", None)
    return json.loads(base64.b64decode(pieces)) if pieces else {}


def install(protocol):
    """fsspec and what it needs for the store, with the image's torch and numpy as they are."""
    needed = {"fsspec", NEEDS.get(protocol, "fsspec")}
    missing = sorted(each for each in needed if not importlib.util.find_spec(each))
    if not missing:
        return
    kept = [
        f"{each.name}=={each.version}\n"
        for each in importlib.metadata.distributions()
        if each.name.startswith(("torch", "numpy", "nvidia", "triton"))
    ]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.writelines(kept)
        file.flush()
        say("installing " + " ".join(missing))
        command = [sys.executable, "-m", "pip", "install", "-q", "-c", file.name, *missing]
        extra = {"PIP_BREAK_SYSTEM_PACKAGES": "1", "PIP_ROOT_USER_ACTION": "ignore"}
        subprocess.run(command, check=True, env={**os.environ, **extra})
    importlib.invalidate_caches()


def fetch(errand):
    """The bundle, which must be the one that was meant."""
    import fsspec

    for more in reversed(range(TRIES)):
        try:
            with fsspec.open(f"{errand['store'].rstrip('/')}/bundle/{errand['bundle']}") as file:
                data = file.read()
            break
        except Exception:
            if not more:
                raise
            time.sleep(3)
    found = hashlib.sha256(data).hexdigest()
    if found != errand["bundle"]:
        raise ValueError(f"the bundle is not what was sent: sha256 {found}")
    return data


def unpack(data, folder):
    place = tempfile.mkdtemp(dir=folder)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # Python 3.11.3
        archive.extractall(place, **safe)  # it is what was sent: its hash says so
    return place


if __name__ == "__main__":
    main()
