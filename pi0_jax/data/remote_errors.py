"""Says what a failed request for a remote file means: whether to ask again, and what to tell."""

import errno
import re
from typing import NamedTuple

HTTP = ("http", "https")
GOOGLE = ("gs", "gcs")
AMAZON = ("s3", "s3a")
_REPEATABLE_STATUS = (408, 429)  # and 5xx
# The errors that s3fs makes of a refused request.
_LASTING = (errno.EINVAL, errno.EPERM, errno.ENOSYS)


class WrongAnswerError(OSError):
    """Is raised where the bytes are not those that were asked for. Asking again may help."""


class NoRangesError(OSError):
    """Is raised where the server does not serve byte ranges."""


class Problem(NamedTuple):
    """Says what is wrong with a request."""

    found: str  # in words, without secrets
    repeatable: bool  # asking again may help
    missing: bool = False  # there is no such file


def errors(protocol: str) -> tuple[type[Exception], ...]:
    """Returns what fsspec's library for a protocol raises when a request fails."""
    # Timeouts and broken connections are OSErrors too.
    kinds: list[type[Exception]] = [OSError]
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
    """Says what an error means that is one of `errors(protocol)`."""
    cause = error.__cause__
    if (
        isinstance(error, FileNotFoundError)
        and protocol in HTTP
        and isinstance(cause, errors(protocol))
    ):
        # fsspec says "not found" whenever it fails to learn a file's size.
        error = cause
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
            # gcsfs reports HTTP 403 as a plain OSError.
            forbidden = protocol in GOOGLE and type(error) is OSError
            return Problem(
                _words(error, protocol), repeatable=not forbidden and error.errno not in _LASTING
            )
        case _:
            return Problem(_words(error, protocol), repeatable=_is_on_the_way(error, protocol))


def _status(error: Exception, protocol: str) -> int | None:
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
    """Returns whether it is a fault of the connection, and not of credentials or address."""
    from aiohttp import ClientError, InvalidURL

    if protocol in AMAZON:
        from botocore.exceptions import HTTPClientError

        return isinstance(error, HTTPClientError | ClientError)
    return isinstance(error, ClientError) and not isinstance(error, InvalidURL)


def _words(error: Exception, protocol: str) -> str:
    """Returns one line of the error's own message, or its kind if it has no message."""
    text = str(error)
    if protocol in HTTP:
        from aiohttp import ClientResponseError

        # The whole text of this error repeats status and URL.
        text = error.message if isinstance(error, ClientResponseError) else text
    lines = without_secrets(text).splitlines()
    return lines[0] if lines else type(error).__name__


def without_secrets(text: str) -> str:
    """Removes user names, passwords and queries from the URLs in a text."""
    text = re.sub(r"(\w://)[^/\s]*@", r"\1", text)
    return re.sub(r"(\w://[^?\s]*)\?[^\s'\")]*", r"\1", text)
