"""What a failed request for a remote file means: whether to ask again, and what to tell the user."""

import errno
import re
from typing import NamedTuple

HTTP = ("http", "https")
GOOGLE = ("gs", "gcs")
AMAZON = ("s3", "s3a")
_REPEATABLE_STATUS = (408, 429)  # and 5xx
_LASTING = (errno.EINVAL, errno.EPERM, errno.ENOSYS)  # what s3fs makes of a refused request


class WrongAnswerError(OSError):
    """Not the bytes that were asked for; asking again may help."""


class NoRangesError(OSError):
    """The server does not serve byte ranges."""


class Problem(NamedTuple):
    found: str  # in words, without secrets
    repeatable: bool
    missing: bool = False


def errors(protocol: str) -> tuple[type[Exception], ...]:
    """What fsspec's library for a protocol raises when a request fails."""
    kinds: list[type[Exception]] = [OSError]  # timeouts and broken connections too
    if protocol in (*HTTP, *GOOGLE, *AMAZON):
        from aiohttp import ClientError

        kinds.append(ClientError)
    if protocol in GOOGLE:
        from gcsfs.retry import HttpError
        from google.auth.exceptions import GoogleAuthError

        kinds += [HttpError, GoogleAuthError]
    if protocol in AMAZON:
        from botocore.exceptions import BotoCoreError

        kinds.append(BotoCoreError)
    return tuple(kinds)


def diagnose(error: Exception, protocol: str) -> Problem:
    """`error` is one of `errors(protocol)`."""
    cause = error.__cause__
    if (
        isinstance(error, FileNotFoundError)
        and protocol in HTTP
        and isinstance(cause, errors(protocol))
    ):
        error = cause  # fsspec says "not found" of every failed look at a file's size
    status = _status(error, protocol)
    if status in (404, 410) or (status is None and isinstance(error, FileNotFoundError)):
        return Problem("none", repeatable=False, missing=True)
    if status is not None:
        repeatable = status in _REPEATABLE_STATUS or status >= 500
        return Problem(f"HTTP {status}: {_words(error, protocol)}", repeatable)
    match error:
        case NoRangesError() | PermissionError() | IsADirectoryError() | NotADirectoryError():
            return Problem(_words(error, protocol), repeatable=False)
        case TimeoutError():
            return Problem("no answer in time", repeatable=True)
        case OSError():
            forbidden = protocol in GOOGLE and type(error) is OSError  # how gcsfs reports HTTP 403
            return Problem(
                _words(error, protocol), repeatable=not forbidden and error.errno not in _LASTING
            )
        case _:
            return Problem(_words(error, protocol), repeatable=_is_on_the_way(error, protocol))


def _status(error: Exception, protocol: str) -> int | None:
    """The HTTP status that a library's error carries."""
    if protocol in (*HTTP, *GOOGLE):
        from aiohttp import ClientResponseError

        if isinstance(error, ClientResponseError):
            return error.status
    if protocol in GOOGLE:
        from gcsfs.retry import HttpError

        if isinstance(error, HttpError) and error.code is not None:
            return int(error.code)
    return None


def _is_on_the_way(error: Exception, protocol: str) -> bool:
    """True for a fault of the connection, not of the request: no credentials, no address."""
    from aiohttp import ClientError, InvalidURL

    if protocol in AMAZON:
        from botocore.exceptions import HTTPClientError

        return isinstance(error, HTTPClientError | ClientError)
    return isinstance(error, ClientError) and not isinstance(error, InvalidURL)


def _words(error: Exception, protocol: str) -> str:
    """One line of the error's own message, or its kind where it has none."""
    text = str(error)
    if protocol in HTTP:
        from aiohttp import ClientResponseError

        # the whole of it repeats status and URL
        text = error.message if isinstance(error, ClientResponseError) else text
    lines = without_secrets(text).splitlines()
    return lines[0] if lines else type(error).__name__


def without_secrets(text: str) -> str:
    """`text`, a URL or holding some, without their user names, passwords and queries."""
    text = re.sub(r"(\w://)[^/\s]*@", r"\1", text)
    return re.sub(r"(\w://[^?\s]*)\?[^\s'\")]*", r"\1", text)
