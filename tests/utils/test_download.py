import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from dinox.utils.download import DownloadError, _SafeRedirects, fetch, is_web_address, names_digest

from .http_server import CONTENT, SHA256, http_server


@pytest.fixture
def server():
    with http_server() as running:
        yield running


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def cached_files(cache):
    """All but the locks, hidden and partial ones among them."""
    return [path.name for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_a_file_is_fetched_once(server, cache):
    url, requests = server
    for _ in range(2):
        path = Path(fetch(f"{url}/models/model.pth"))
        assert path.read_bytes() == CONTENT and path.is_relative_to(cache)
    assert requests == ["/models/model.pth"]


@pytest.mark.parametrize("digest", [SHA256, SHA256.upper()])
def test_a_digest_that_fits_is_silent_and_no_part_of_the_name(server, digest):
    assert Path(fetch(f"{server[0]}/model.pth#sha256={digest}")).name == "model.pth"


def test_another_digest_is_an_error_and_nothing_stays(server, cache):
    with pytest.raises(DownloadError, match=rf"/model\.pth: expected the sha256 {'0' * 64}, got {SHA256}.*cached as"):
        fetch(f"{server[0]}/model.pth#sha256={'0' * 64}")
    assert cached_files(cache) == []


def test_a_cached_file_is_checked_too(server):
    url = f"{server[0]}/model.pth"
    path = Path(fetch(url))
    path.write_bytes(b"something else")
    with pytest.raises(DownloadError, match=rf"the cached file {path} does not have the sha256 .* remove it"):
        fetch(f"{url}#sha256={SHA256}")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cut.pth", rf"broke off after {len(CONTENT) // 2} of {len(CONTENT)} bytes"),
        ("page.pth", "answers with a web page"),
        ("missing.pth", r"answers 404 Not Found\. Is the address right"),
        ("redirect.pth", r"http://example\.com/model\.pth: refused, for only https://"),
    ],
)
def test_what_is_not_the_file_is_an_error_with_address_and_place(server, cache, name, message):
    with pytest.raises(DownloadError, match=message) as error:
        fetch(f"{server[0]}/{name}")
    if name != "redirect.pth":
        assert str(error.value).startswith(f"{server[0]}/{name}: ") and str(cache) in str(error.value)
    assert cached_files(cache) == []


@pytest.mark.parametrize("name", ["model.pth", "endless.pth"])
def test_more_bytes_than_allowed_are_not_fetched(server, cache, name):
    with pytest.raises(DownloadError, match="more than the 1000"):
        fetch(f"{server[0]}/{name}", max_bytes=1000)
    assert cached_files(cache) == []


def test_without_a_network_the_error_names_address_and_place(cache):
    class Offline:
        def open(self, url, timeout):
            raise urllib.error.URLError("Name or service not known")

    with pytest.raises(DownloadError, match=r"https://example\.com/a/b\.pth: cannot be fetched: Name or.*b\.pth\)$"):
        fetch("https://example.com/a/b.pth", opener=Offline())
    assert cached_files(cache) == []


@pytest.mark.parametrize("url", ["http://example.com/a.pth", "ftp://example.com/a.pth", "file:///etc/passwd"])
def test_only_https_leaves_this_machine(url):
    with pytest.raises(DownloadError, match="refused, for only https://"):
        fetch(url)


@pytest.mark.parametrize(
    "url",
    ["https://example.com", "https://example.com/../a.pth", "https://example.com/a/%2e%2e/b", "https://a.com/b%00.pth"],
)
def test_addresses_cannot_name_files_outside_of_the_cache(url, cache):
    with pytest.raises(DownloadError, match="expected the address of a file"):
        fetch(url)
    assert not cache.exists() or cached_files(cache.parent) == []


@pytest.mark.parametrize(
    "fragment", ["md5=0123456789", "sha256=xyz", "sha256=12", f"sha256={SHA256[:8]}", f"sha256={SHA256}0"]
)
def test_a_digest_of_another_kind_is_an_error(fragment):
    with pytest.raises(DownloadError, match="expected #sha256=HEX"):
        fetch(f"https://example.com/a.pth#{fragment}")


def test_torchvisions_names_hold_a_digest():
    class Other:
        def open(self, url, timeout):
            return urllib.request.urlopen(f"{self.url}/resnet50-0676ba61.pth", timeout=timeout)

    with http_server() as (address, _):
        opener = Other()
        opener.url = address
        with pytest.raises(DownloadError, match="expected the sha256 0676ba61, got"):
            fetch("https://download.pytorch.org/models/resnet50-0676ba61.pth", opener=opener)


def test_two_hosts_do_not_share_a_cached_file(server):
    with http_server(b"another") as (other, _):
        assert fetch(f"{server[0]}/model.pth") != fetch(f"{other}/model.pth")


def test_queries_are_files_of_their_own(server):
    assert fetch(f"{server[0]}/model.pth?v=1") != fetch(f"{server[0]}/model.pth?v=2")


def test_one_of_many_fetches_and_the_others_wait(server):
    url, requests = server
    threads = [threading.Thread(target=fetch, args=(f"{url}/model.pth",)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert requests == ["/model.pth"]


def test_detectron2s_cache_is_used_for_its_files(cache):
    """As iopath names them, so that machines without a network go on with what they have."""
    path = cache / "detectron2" / "ImageNetPretrained" / "torchvision" / "R-50.pkl"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"there already")
    url = "https://dl.fbaipublicfiles.com/detectron2/ImageNetPretrained/torchvision/R-50.pkl"
    assert fetch(url) == str(path)


@pytest.mark.parametrize("second", ["a.pth/b.pth", "c" * 300 + ".pth"])
def test_what_the_cache_has_no_place_for_is_an_error(server, cache, second):
    fetch(f"{server[0]}/a.pth")
    with pytest.raises(
        DownloadError, match=r"cannot be kept: (Not a directory|File exists|File name too long).*the path"
    ):
        fetch(f"{server[0]}/{second}")
    assert cached_files(cache) == ["a.pth"]


def test_a_page_cannot_lead_to_a_server_on_this_machine():
    request = urllib.request.Request("https://example.com/model.pth")
    with pytest.raises(
        DownloadError, match=r"example\.com/model\.pth: refused, for it leads to http://127\.0\.0\.1:80/"
    ):
        _SafeRedirects().redirect_request(request, None, 302, "Found", {}, "http://127.0.0.1:80/secret")
    request = urllib.request.Request("http://localhost/model.pth")
    found = _SafeRedirects().redirect_request(request, None, 302, "Found", {}, "http://127.0.0.1:80/model.pth")
    assert found.full_url == "http://127.0.0.1:80/model.pth"


def test_schemes_are_told_in_any_case(server, cache):
    assert is_web_address("HTTPS://example.com/a.pth") and not is_web_address("https.pth")
    assert Path(fetch(server[0].replace("http", "HTTP") + "/model.pth")).read_bytes() == CONTENT


def test_only_a_whole_digest_in_the_address_says_what_the_file_is():
    assert names_digest(f"https://example.com/a.pth#sha256={SHA256}")
    assert not names_digest(f"https://example.com/a#sha256={SHA256}.pth")
    assert not names_digest(f"https://download.pytorch.org/a-{SHA256}.pth")
