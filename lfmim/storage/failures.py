"""What a disk or an object store says when it fails, as one message that names the place and the
remedy."""

from __future__ import annotations

import errno
import os
import re

from lfmim.schema import InputError

# Quota exceeded and file size limit (ulimit -f) are a full disk to whoever meets them.
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
_NUMBERS = "|".join(map(str, DISK_ERRORS))

_LIBRARIES = (
    *("botocore", "aiobotocore", "s3fs", "gcsfs", "google", "adlfs", "azure", "huggingface_hub"),
    *("aiohttp", "httpx", "httpx2", "requests"),
)
_RIGHTS = "the credentials must allow listing, reading, writing and deleting there"
_RENEW = "get new ones, then run the same command again"
_BY_CODE = {
    "NoSuchBucket": "there is no such bucket; make it, or correct the name",
    "ExpiredToken": f"the credentials have expired; {_RENEW}",
    "ExpiredTokenException": f"the credentials have expired; {_RENEW}",
    "TokenRefreshRequired": f"the credentials have expired; {_RENEW}",
    "RequestExpired": f"the credentials have expired; {_RENEW}",
    "InvalidToken": f"the session token is not valid; {_RENEW}",
    "InvalidAccessKeyId": f"the access key is not known there; {_RIGHTS}",
    "SignatureDoesNotMatch": "the secret key does not fit the access key; correct it",
    "RequestTimeTooSkewed": "this machine's clock is wrong; set it",
    "AccessDenied": f"access denied; {_RIGHTS}",
    "403": f"access denied; {_RIGHTS}",
    "SlowDown": "too many requests, after several tries; run the same command again later, "
    "with fewer workers",
    "ServiceUnavailable": "the service is not available, after several tries; run the same "
    "command again later",
    "503": "the service is not available, after several tries; run the same command again later",
    "NoCredentialsError": "no credentials found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
    "or give the machine a role (docs/object-storage.md)",
    "PartialCredentialsError": "the credentials are incomplete; set AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY",
    "EndpointConnectionError": "nobody answers there; check AWS_ENDPOINT_URL and the network",
}
"""S3's error codes and botocore's exceptions, as what is wrong and what to do."""
MISSING_BUCKET = "NoSuchBucket"
OF_ONE = (MISSING_BUCKET, "AccessDenied", "403", "404")
"""Codes that may be an object's or a bucket's own."""


class StorageError(InputError):
    """`path` could not be read or written because of `reason`, which says what to do. `general`:
    another path there would have failed alike (credentials, network, overload)."""

    def __init__(self, path: object, reason: str, general: bool = False) -> None:
        super().__init__(self.message(path, reason))
        self.path, self.reason, self.general = str(path), reason, general

    @staticmethod
    def message(path: object, reason: str) -> str:
        return f"{path}: {reason}"

    def __reduce__(self) -> tuple[type[StorageError], tuple[str, str, bool]]:
        # It comes back from other processes, and an exception is unpickled from its one message,
        # which __init__ does not take.
        return type(self), (self.path, self.reason, self.general)


class WriteError(StorageError):
    """`path` could not be written because of `reason`. What was there before is as it was."""

    @staticmethod
    def message(path: object, reason: str) -> str:
        text = f"{path}: cannot be written to: {reason}. What was written before is kept"
        # What an object store refuses comes with its own remedy.
        if "://" in str(path):
            return text
        return f"{text}; make room or fix the folder, then run the same command again"


def disk_failure(error: BaseException | None) -> StorageError | None:
    """What failed first among an exception's causes, if that was a full or read-only disk, or an
    object store."""
    found = None
    while error is not None:
        if isinstance(error, StorageError):
            found = error
        elif isinstance(error, OSError) and error.errno in DISK_ERRORS:
            found = WriteError(error.filename or "the disk", reason_of(error))
        # safetensors is written in Rust: its error has no errno, only this text.
        elif rust := re.search(rf"\(os error ({_NUMBERS})\)", str(error)):
            found = WriteError("the disk", os.strerror(int(rust[1])))
        elif of_library(error):
            found = StorageError("object storage", remote_reason(error))
        # On to the deepest, which came first and knows the file. Libraries that raise anew without
        # `from` leave only the context.
        error = error.__cause__ or error.__context__
    return found


def of_library(error: BaseException) -> bool:
    """Whether a client of object stores raises it."""
    return type(error).__module__.partition(".")[0] in _LIBRARIES


def reason_of(error: OSError) -> str:
    """What the system says of it, without number and path."""
    return os.strerror(error.errno) if error.errno else str(error)


def error_code(error: BaseException | None) -> str:
    """S3's code among an exception's causes ('NoSuchBucket', of a HEAD request '404'), or the name
    of botocore's exception; '' if there is neither."""
    while error is not None:
        # s3fs translates botocore's ClientError, and leaves it as the cause.
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
        if type(error).__module__.startswith("botocore."):
            return type(error).__name__
        error = error.__cause__ or error.__context__
    return ""


def remote_reason(error: BaseException, code: str = "") -> str:
    """What is wrong with an object store, and what to do; `code`: where it is known better."""
    code = code or error_code(error)
    # What an exception says itself is shown only where nothing else is known of it: S3 repeats
    # access keys in some of its messages.
    if known := _BY_CODE.get(code):
        return known
    if isinstance(error, PermissionError):
        return _BY_CODE["AccessDenied"]
    if code:
        return f"the store answers {code}"
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
