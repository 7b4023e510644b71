"""Keys for one folder of a bucket, made by AWS from the caller's own.

``GetFederationToken`` is the call for that: what it makes can do no more than the policy says and
no more than the caller can, makes no other keys, and ends after 36 hours at most. It takes the
long-term keys of a user who may call it; a role or a login it refuses, and services that only
speak the language of S3 (R2, MinIO, B2) do not know it.
"""

import json
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from pipeline.redact import redacted
from pipeline.store import backends


class _Keys(NamedTuple):
    access_key: str
    secret_key: str
    token: str | None


def own() -> dict[str, str]:
    """The caller's keys as AWS's library finds them, in variables; nothing if there are none."""
    keys, meta = _asked(lambda: _found(_session()))
    return _variables(keys, meta) if keys else {}


def federated(url: str, seconds: int) -> tuple[dict[str, str], float]:
    """Keys for the folder of a URL, in variables, and when they end. Raises ValueError: why not."""
    session = _session()
    keys, meta = _asked(lambda: _found(session))
    if keys is None:
        looked = backends.looks("s3")
        raise ValueError(f"there are none to ask with; they are looked for in {looked}")
    if keys.token:
        raise ValueError(
            "yours are of a session (a role, a login), and AWS makes them only for the long-term "
            "keys of a user"
        )
    sts = session.create_client("sts", region_name=meta.region_name)
    if _is_amazon(sts.meta) and not _is_amazon(meta):
        raise ValueError(f"{redacted(meta.endpoint_url)} is not AWS, which makes them")
    asked = {
        "Name": "ignite-box",
        "Policy": json.dumps(policy(url, meta.partition), separators=(",", ":")),
        "DurationSeconds": seconds,
    }
    made = _asked(lambda: sts.get_federation_token(**asked))["Credentials"]
    given = _Keys(*(made[name] for name in ("AccessKeyId", "SecretAccessKey", "SessionToken")))
    return _variables(given, meta), made["Expiration"].timestamp()


def policy(url: str, partition: str = "aws") -> dict[str, Any]:
    """All that a box may do: read, write and remove in the store's folder, and list it.

    Listing counts: without it AWS says of an object that is not there that it is forbidden.
    """
    bucket, _, folder = url.partition("://")[2].strip("/").partition("/")
    folder = re.sub(r"[*?$]", r"${\g<0>}", folder)  # these would mean more than themselves
    here = f"arn:{partition}:s3:::{bucket}"
    listing: dict[str, Any] = {"Effect": "Allow", "Action": ["s3:ListBucket"], "Resource": [here]}
    if folder:
        listing["Condition"] = {"StringLike": {"s3:prefix": [folder, f"{folder}/*"]}}
    objects = [
        *("s3:GetObject", "s3:PutObject", "s3:DeleteObject"),
        *("s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"),
    ]
    inside = "/".join(filter(None, [here, folder, "*"]))
    allowed = {"Effect": "Allow", "Action": objects, "Resource": [inside]}
    return {"Version": "2012-10-17", "Statement": [allowed, listing]}


def _session() -> Any:
    try:
        import botocore.session
    except ImportError as error:
        raise ValueError("s3:// needs a package: pip install 'ignite-llm[s3]'") from error
    return botocore.session.get_session()


def _asked(ask: Callable[[], Any]) -> Any:
    """What AWS's library answers. Its errors become ValueErrors with its words."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        return ask()
    except (BotoCoreError, ClientError) as error:
        raise ValueError(redacted(str(error)).rstrip(".")) from None


def _found(session: Any) -> tuple[Any, Any]:
    """The keys that there are here, if any, and where they are good for."""
    keys = session.get_credentials()
    region = session.get_config_variable("region") or "us-east-1"
    s3 = session.create_client("s3", region_name=region)
    return keys and keys.get_frozen_credentials(), s3.meta


def _variables(keys: Any, meta: Any) -> dict[str, str]:
    values = {"AWS_ACCESS_KEY_ID": keys.access_key, "AWS_SECRET_ACCESS_KEY": keys.secret_key}
    if keys.token:
        values["AWS_SESSION_TOKEN"] = keys.token
    if not _is_amazon(meta):
        values["AWS_ENDPOINT_URL_S3"] = meta.endpoint_url
    return {**values, "AWS_DEFAULT_REGION": meta.region_name}


def _is_amazon(meta: Any) -> bool:
    host = meta.endpoint_url.partition("://")[2].partition("/")[0]
    return host.endswith((".amazonaws.com", ".amazonaws.com.cn"))
