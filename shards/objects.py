"""Object storage behind `store`: retries and errors of s3fs and other remote filesystems.

Transient faults (5xx, resets, timeouts, truncated bodies) are retried for about 40 s; permanent
faults become a one-line error that names the endpoint and the profile, never a key. The retries of
s3fs are off: they do not cover a truncated body on its concurrent path or a rotated credentials
file, and nested retries multiply.
"""

import contextlib
import errno
import os
import re
import secrets
import time
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple, TypeVar

import fsspec

PAUSES = (0.05, 0.2, 0.5, 1.0, 2.0, 4.0, 8.0, 12.0, 12.0)  # seconds between tries
PART = 64 * 2**20
STALL = 15  # seconds without a byte after which a request is retried

T = TypeVar("T")


class StoreError(OSError, ValueError):
    """Storage cannot serve a URL: no bucket, permission, space or answer. One line."""


class Unavailable(StoreError):
    """No answer, or no space: the same command may succeed later."""


def display(url: str | os.PathLike[str]) -> str:
    """Return `url` for messages: without user and password, and without the query of http(s)."""
    text = re.sub(r"^([^/]*://)[^/@]*@", r"\1", os.fspath(url))
    return text.split("?", 1)[0] if re.match(r"[^/]*https?://", text) else text


_systems: dict[tuple[int, str], Any] = {}


def _system(url: str) -> tuple[Any, str]:
    """Return (filesystem, path) of a remote URL; not fork-safe, so one filesystem per process."""
    scheme = url.split("://", 1)[0]
    key = (os.getpid(), scheme)
    if key not in _systems:
        options: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
        if scheme in ("s3", "s3a"):
            options["config_kwargs"] = {
                "retries": {"total_max_attempts": 1},
                "connect_timeout": 5,
                "read_timeout": STALL,
                "signature_version": "s3v4",  # of signed URLs too: many servers reject older ones
            }
        try:
            system = fsspec.filesystem(scheme, **options)
        except (ValueError, ImportError) as error:
            raise ValueError(
                f"{display(url)}: unknown storage {scheme}:// "
                "(give a path, s3://bucket/prefix, or a scheme that fsspec has a package for)"
            ) from error
        if scheme in ("s3", "s3a"):
            system.retries = 1
            system.split_path = partial(_bucket_and_key, system)
        _systems[key] = system
    return _systems[key], _systems[key]._strip_protocol(url)


def _bucket_and_key(system: Any, path: str) -> tuple[str, str, None]:
    """As s3fs' `split_path`, but keep a key that contains `?versionId=` whole."""
    bucket, key = system._find_bucket_key(system._strip_protocol(path))
    return bucket, key + path[len(path.rstrip("/")) :] if key else "", None


def reset_sessions() -> None:
    """Drop this process's sessions, so that the next call reads credentials and endpoint again."""
    _systems.clear()


def _code(error: BaseException) -> tuple[str, int]:
    """Return the S3 error code and HTTP status of `error`, else ("", 0)."""
    response = getattr(error.__cause__, "response", None) or getattr(error, "response", None)
    if not isinstance(response, dict):
        return "", int(getattr(error, "status", 0) or 0)  # aiohttp's, for http(s)://
    meta = response.get("ResponseMetadata", {})
    return str(response.get("Error", {}).get("Code", "")), int(meta.get("HTTPStatusCode", 0))


def _where(url: str) -> str:
    """Return the URL, endpoint and credentials in use, by name."""
    environment = os.environ
    endpoint = (
        environment.get("AWS_ENDPOINT_URL_S3")
        or environment.get("AWS_ENDPOINT_URL")
        or environment.get("FSSPEC_S3_ENDPOINT_URL")
        or "its default endpoint"
    )
    identity = (
        "the key in AWS_ACCESS_KEY_ID"
        if environment.get("AWS_ACCESS_KEY_ID")
        else f"profile {environment.get('AWS_PROFILE', 'default')}"
    )
    return f"{display(url)} at {display(endpoint)} with {identity}"


def _permanent_error(error: Exception, url: str) -> Exception | None:
    """Return the exception to raise at once for `error`; None if a retry may help."""
    code, status = _code(error)
    if status == 412 or code == "PreconditionFailed" or isinstance(error, FileExistsError):
        return FileExistsError(errno.EEXIST, "already there", display(url))
    if code == "NoSuchBucket":
        return StoreError(f"{_where(url)}: no such bucket; create it or correct the URL")
    if isinstance(error, FileNotFoundError) or status == 404:
        return FileNotFoundError(errno.ENOENT, "no such object", display(url))
    if isinstance(error, PermissionError) or status in (401, 403):
        why = code if code not in ("", "403", "401") else "access denied"
        return StoreError(f"{_where(url)}: {why}; check the credentials and the bucket's policy")
    if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"):
        return StoreError(
            f"{_where(url)}: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "or AWS_PROFILE (for a public bucket: FSSPEC_S3_ANON=true)"
        )
    if type(error).__name__ == "SSLError":
        return StoreError(f"{_where(url)}: its certificate is not trusted; set AWS_CA_BUNDLE")
    if 300 <= status < 500 and status not in (408, 429) and code != "RequestTimeout":
        return StoreError(f"{_where(url)}: refused ({code or status}); check region and endpoint")
    if isinstance(error, ValueError) or type(error).__name__ == "ParamValidationError":
        return StoreError(f"{_where(url)}: {' '.join(str(error).split())[:200]}")
    if isinstance(error, (NotADirectoryError, IsADirectoryError, NotImplementedError, TypeError)):
        return error
    return None


def with_retries(url: str, ask: Callable[[Any, str], T]) -> T:
    """Call `ask(system, path)`, with retries while the fault is transient."""
    refreshed = False
    for pause in (*PAUSES, None):
        system, path = _system(url)
        try:
            return ask(system, path)
        except Exception as error:
            if "expired" in f"{_code(error)[0]} {error}".lower() and not refreshed:
                refreshed = True  # only a new session reads a rotated credentials file
                _systems.pop((os.getpid(), url.split("://", 1)[0]), None)
                continue
            permanent = _permanent_error(error, url)
            if permanent is not None:
                raise permanent from error
            if pause is None:
                why = _code(error)[0] or type(error).__name__
                raise Unavailable(
                    f"{_where(url)}: no valid answer in {len(PAUSES) + 1} tries ({why}); "
                    "check the endpoint and the network"
                ) from error
            time.sleep(pause * (0.5 + secrets.randbelow(1000) / 1000))
    raise AssertionError("the last round raises")


def children(url: str) -> list[str]:
    """List the names directly below the folder `url`. FileNotFoundError if there is none."""

    def ask(system: Any, path: str) -> list[str]:
        # A console creates a folder as an empty object `path/`, which is listed in itself.
        return [child for child in system.ls(path, detail=False) if child.rstrip("/") != path]

    return [child.rstrip("/").rpartition("/")[2] for child in with_retries(url, ask)]


def delete(url: str, recursive: bool) -> None:
    """Delete the key of `url`, with `recursive` all keys below it, each by its exact name.

    The `rm` of fsspec would take `* ? [ ]` in a key for a pattern and delete all matches.
    """
    if not url.startswith(("s3://", "s3a://")):
        with_retries(url, lambda system, path: _delete_each(system, path, recursive))
        return
    bucket, key, _ = _system(url)[0].split_path(url.rstrip("/"))
    below = _keys(url, bucket, f"{key}/" if key else "") if recursive else []
    keys = [*below, key] if key else below
    for start in range(0, len(keys), 1000):  # the limit of one request
        some = {"Objects": [{"Key": one} for one in keys[start : start + 1000]], "Quiet": True}

        def ask(system: Any, _: str, some: dict[str, Any] = some) -> Any:
            return system.call_s3("delete_objects", Bucket=bucket, Delete=some)

        for fault in with_retries(url, ask).get("Errors", []):
            where = _where(f"s3://{bucket}/{fault['Key']}")
            raise StoreError(
                f"{where}: cannot be deleted ({fault.get('Code')}); check the bucket's policy"
            )


def _delete_each(system: Any, path: str, recursive: bool) -> None:
    if not recursive:
        system.rm_file(path)
        return
    entries = system.find(path, withdirs=True, detail=True)
    for name in sorted(entries, key=len, reverse=True):  # the content of a folder before it
        (system.rmdir if entries[name]["type"] == "directory" else system.rm_file)(name)


def _keys(url: str, bucket: str, prefix: str) -> list[str]:
    """Return every key of the bucket with the prefix."""
    request: dict[str, str] = {"Bucket": bucket, "Prefix": prefix}
    keys: list[str] = []
    while True:
        page = with_retries(url, lambda system, _: system.call_s3("list_objects_v2", **request))
        keys += [entry["Key"] for entry in page.get("Contents", [])]
        if not page.get("IsTruncated"):
            return keys
        request["ContinuationToken"] = page["NextContinuationToken"]


def upload_parts(url: str, path: str | os.PathLike[str], length: int) -> None:
    """Upload in parts; each part is retried separately."""
    bucket, key, _ = _system(url)[0].split_path(url)

    def call(name: str, **arguments: Any) -> Any:
        return with_retries(
            url, lambda system, _: system.call_s3(name, Bucket=bucket, Key=key, **arguments)
        )

    upload_id = call("create_multipart_upload")["UploadId"]
    step = max(PART, -(-length // 9_000))  # S3 takes at most 10,000 parts
    try:
        parts = []
        for number, start in enumerate(range(0, length, step), start=1):
            body = _slice(path, start, step)
            tag = call("upload_part", UploadId=upload_id, PartNumber=number, Body=body)["ETag"]
            parts.append({"PartNumber": number, "ETag": tag})
        call("complete_multipart_upload", UploadId=upload_id, MultipartUpload={"Parts": parts})
    except BaseException:
        call("abort_multipart_upload", UploadId=upload_id)
        raise


def _slice(path: str | os.PathLike[str], start: int, length: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(start)
        return file.read(length)


class Upload(NamedTuple):
    """An unfinished multipart upload: its bytes are stored and billed, but invisible."""

    url: str
    id: str
    started: datetime


def unfinished_uploads(url: str) -> list[Upload]:
    """Return the open multipart uploads below an s3:// `url`."""
    bucket, _, prefix = url.split("://", 1)[1].partition("/")  # keep a trailing slash
    uploads: list[Upload] = []
    request: dict[str, str] = {"Bucket": bucket, "Prefix": prefix}

    def ask(system: Any, _: str) -> Any:
        return system.call_s3("list_multipart_uploads", **request)

    while True:
        page = with_retries(url, ask)
        for entry in page.get("Uploads", []):
            where = f"s3://{bucket}/{entry['Key']}"
            uploads.append(Upload(where, entry["UploadId"], entry["Initiated"]))
        if not page.get("IsTruncated"):
            return uploads
        request["KeyMarker"] = page["NextKeyMarker"]
        request["UploadIdMarker"] = page["NextUploadIdMarker"]


def abort(upload: Upload) -> None:
    """Free the storage of `upload`; ignores one that is gone already."""
    bucket, key, _ = _system(upload.url)[0].split_path(upload.url)
    with contextlib.suppress(FileNotFoundError):
        with_retries(
            upload.url,
            lambda system, _: system.call_s3(
                "abort_multipart_upload", Bucket=bucket, Key=key, UploadId=upload.id
            ),
        )
