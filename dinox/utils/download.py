"""Files from the web: over https, checked, and in the cache whole or not at all."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import ssl
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urldefrag, urlsplit

from iopath.common.file_io import file_lock, get_cache_dir
from tqdm import tqdm

from dinox.utils.whole_files import written_whole

MAX_BYTES = 16 * 2**30
"""Greatest file that is fetched: ten times the greatest detector's checkpoint with its optimizer."""

_TIMEOUT = 30.0  # seconds without a byte
_CHUNK = 2**20
_LOOPBACK = {"127.0.0.1", "::1", "localhost"}  # a server on this machine needs no https
_DETECTRON2_HOST = "dl.fbaipublicfiles.com"
_ADDRESS = re.compile(r"(https?|ftp)://", re.IGNORECASE)
_DIGEST = re.compile(r"sha256=([0-9a-f]{64})", re.IGNORECASE)
# Names at this host end with the beginning of their content's sha256: enough against a broken file, not against one
# that was made to fit.
_HASHED_HOST = "download.pytorch.org"
_HASHED_NAME = re.compile(r".*-([0-9a-f]{8,64})\.[^/]+")


class DownloadError(ValueError):
    """A file that cannot be had or is not the expected one. The message names the URL and where it was to be cached."""


@dataclass(frozen=True)
class _Source:
    """A file on the web. sha256: hexadecimal, all of it or its beginning; None: not known. cached: where it goes."""

    url: str
    sha256: str | None
    cached: Path

    def error(self, reason: str) -> DownloadError:
        return DownloadError(f"{self.url}: {reason} (to be cached as {self.cached})")


def fetch(url: str, *, max_bytes: int = MAX_BYTES, opener: urllib.request.OpenerDirector | None = None) -> str:
    """The local copy of a file on the web, downloaded when it is asked for the first time.

    Args:
        url: ``https://...``; plain ``http://`` on this machine only. ``https://...#sha256=HEX``, of 64 digits, is
            checked, also when the file is in the cache; of files at download.pytorch.org the part of it in the name
            is. detectron2's files (``dl.fbaipublicfiles.com``) have no published digest: they are taken as they come.
        max_bytes: more is an error.
        opener: opens the URL; by default one that follows no redirection away from https, nor to this machine.

    The cache is that of detectron2: ``$FVCORE_CACHE``, or ``~/.torch/iopath_cache``. One process downloads, others
    wait for it.

    Raises DownloadError: another kind of URL, no connection, an answer that is no file, too many or too few bytes,
    another digest, no place in the cache. Then nothing is under the final name.
    """
    source = _parse(url)
    try:
        _fill_cache(source, max_bytes, opener)
    except OSError as error:  # a disk that is full, a name that is too long, a file where a folder should be
        raise source.error(f"cannot be kept: {error.strerror or error}. Fetch it yourself and give the path") from error
    return str(source.cached)


def is_web_address(text: str) -> bool:
    """Whether a text is meant for ``fetch``, which may refuse it."""
    return _ADDRESS.match(text) is not None


def names_digest(url: str) -> bool:
    """Whether a URL says what its file has to be, with all of a sha256: ``fetch`` gives no other."""
    return _DIGEST.fullmatch(urldefrag(url).fragment) is not None


def _fill_cache(source: _Source, max_bytes: int, opener: urllib.request.OpenerDirector | None) -> None:
    with file_lock(str(source.cached)):
        if not source.cached.is_file():
            _download(source, max_bytes, opener or urllib.request.build_opener(_SafeRedirects()))
        elif source.sha256 and not _sha256(source.cached).startswith(source.sha256):
            raise source.error(
                f"the cached file {source.cached} does not have the sha256 {source.sha256}: remove it, so that it is "
                "fetched again"
            )


def _parse(url: str) -> _Source:
    plain, fragment = urldefrag(url)
    _check_scheme(plain)
    parts = urlsplit(plain)
    folder, _, name = unquote(parts.path).strip("/").rpartition("/")
    if not name or ".." in folder.split("/") or name == ".." or "\0" in folder + name:
        raise DownloadError(f"{url}: expected the address of a file")
    named = _HASHED_NAME.fullmatch(name) if parts.hostname == _HASHED_HOST else None
    digest = named[1] if named else None
    if fragment:
        given = _DIGEST.fullmatch(fragment)
        if not given:
            raise DownloadError(
                f"{url}: expected #sha256=HEX with all 64 digits after the address, got #{fragment} (sha256sum FILE)"
            )
        digest = given[1].lower()
    # detectron2's layout for its own files, so that what either has fetched is there for both. It knows no hosts.
    host = () if parts.hostname == _DETECTRON2_HOST else (parts.netloc.replace(":", "_"),)
    if parts.query:
        name = f"{hashlib.sha256(parts.query.encode()).hexdigest()[:8]}-{name}"
    return _Source(url=plain, sha256=digest, cached=Path(get_cache_dir(), *host, folder, name))


def _check_scheme(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme == "https" and parts.hostname:
        return
    if parts.scheme == "http" and parts.hostname in _LOOPBACK:
        return
    raise DownloadError(
        f"{url}: refused, for only https:// protects a file on its way. Give its https address, or fetch it yourself "
        "and give the path"
    )


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """This machine's own servers are for addresses that the user gave, not for those that a page leads to."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        _check_scheme(newurl)
        if urlsplit(newurl).hostname in _LOOPBACK and urlsplit(req.full_url).hostname not in _LOOPBACK:
            raise DownloadError(f"{req.full_url}: refused, for it leads to {newurl}, a server on this machine")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _download(source: _Source, max_bytes: int, opener: urllib.request.OpenerDirector) -> None:
    try:
        with opener.open(source.url, timeout=_TIMEOUT) as answer, written_whole(source.cached) as temporary:
            expected = _expected_size(source, answer, max_bytes)
            digest = _copy(source, answer, temporary, expected=expected, max_bytes=max_bytes)
            if source.sha256 and not digest.startswith(source.sha256):
                raise source.error(f"expected the sha256 {source.sha256}, got {digest}. This is not the published file")
    except HTTPError as error:
        raise source.error(f"the server answers {error.code} {error.reason}. Is the address right?") from error
    except (URLError, http.client.HTTPException, TimeoutError, ConnectionError, ssl.SSLError) as error:
        reason = getattr(error, "reason", None) or error
        raise source.error(
            f"cannot be fetched: {reason}. Is this machine online? Otherwise fetch it elsewhere and give the path"
        ) from error


def _expected_size(source: _Source, answer: http.client.HTTPResponse, max_bytes: int) -> int | None:
    if answer.headers.get_content_type() == "text/html":
        raise source.error("the server answers with a web page. Give the address of the file itself")
    length = answer.headers.get("Content-Length")
    size = int(length) if length and length.isdecimal() else None
    if size is not None and size > max_bytes:
        raise source.error(f"has {size} bytes, more than the {max_bytes} that are fetched")
    return size


def _copy(source: _Source, answer: IO[bytes], target: Path, *, expected: int | None, max_bytes: int) -> str:
    """The answer into the file; returns the sha256."""
    digest, done = hashlib.sha256(), 0
    bar = tqdm(total=expected, unit="B", unit_scale=True, desc=source.cached.name, disable=None)
    with open(target, "wb") as file, bar:
        while chunk := answer.read(_CHUNK):
            done += len(chunk)
            if done > max_bytes:
                raise source.error(f"has more than the {max_bytes} bytes that are fetched")
            digest.update(chunk)
            file.write(chunk)
            bar.update(len(chunk))
    if done == 0 or (expected is not None and done != expected):
        raise source.error(f"the download broke off after {done} of {expected or 'unknown'} bytes. Try again")
    return digest.hexdigest()


def _sha256(path: str | os.PathLike) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
