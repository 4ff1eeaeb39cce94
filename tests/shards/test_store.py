"""Files at a URL: written atomically, read exactly, with one-line errors."""

import contextlib
import functools
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from shards import objects, store
from shards.ranged import Ranges
from tests.support.s3 import Faults, Server, point_at

s3 = pytest.mark.s3


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten tries as in production, without their pauses."""
    monkeypatch.setattr(objects, "PAUSES", (0.0,) * 9)


# --- URLs -----------------------------------------------------------------------------------------


# Row 1
@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("s3://bucket/key", "s3://bucket/key"),
        ("https://user:secret@host/a", "https://host/a"),
        ("https://host/a?X-Amz-Signature=abc", "https://host/a"),
        ("simplecache::https://user:secret@host/a?sig=abc", "simplecache::https://host/a"),
        ("s3://AKIA:wJal@bucket/key", "s3://bucket/key"),
        ("s3://bucket/a?b/c?versionId=1", "s3://bucket/a?b/c?versionId=1"),
        ("s3://bucket/a://b@c", "s3://bucket/a://b@c"),
        ("gs://bucket/why?", "gs://bucket/why?"),
        ("/data/a?b", "/data/a?b"),
    ],
)
def test_a_url_is_shown_without_user_and_password_and_a_web_address_without_query(
    given: str, shown: str
) -> None:
    assert store.display(given) == shown


def test_parts_are_joined_by_single_slashes() -> None:
    assert store.join("s3://b/p/", "/train/", "x.tar") == "s3://b/p/train/x.tar"
    assert store.join("/", "a") == "/a"


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("/data/run-1", "run-1"),
        ("run-1", "run-1"),
        ("runs/run-1//", "run-1"),
        ("s3://bucket/runs/run-1/", "run-1"),
        ("file:///data/a%20b", "a%20b"),
        ("/", ""),
    ],
)
def test_the_name_is_the_last_part_of_a_path_or_url(url, name):
    assert store.name(url) == name


def test_a_file_url_is_the_path_it_means(tmp_path) -> None:
    store.write(f"file://{tmp_path}/with%20space", b"x")
    assert (tmp_path / "with space").read_bytes() == b"x"


def test_a_scheme_nobody_knows_is_refused_and_pipe_is_one() -> None:
    for url in ("pipe:cat /etc/passwd://x", "pipe://id", "gopher://x/y"):
        with pytest.raises(ValueError, match="unknown storage"):
            store.read(url)


# --- what every store does ------------------------------------------------------------------------


def check_contract(place: str) -> None:
    url = store.join(place, "a", "b c.bin")
    data = bytes(range(256)) * 8
    assert not store.exists(url)
    store.write(url, data)
    assert store.exists(url)
    assert store.size(url) == 2048
    assert store.read(url) == data
    assert store.read(url, 100, 1000) == data[100:1000]
    assert store.read(url, 2000) == data[2000:]
    assert store.read(url, 7, 7) == b""
    store.write(url, b"new")
    assert store.read(url) == b"new"
    assert store.names(place) == ["a"]
    assert store.names(store.join(place, "a")) == ["b c.bin"]
    assert store.names(store.join(place, "nothing")) == []
    with pytest.raises(EOFError, match="3 bytes at 0, expected 10"):
        store.read(url, 0, 10)
    with pytest.raises(FileNotFoundError):
        store.read(store.join(place, "missing"))
    with pytest.raises(FileNotFoundError):
        store.size(store.join(place, "missing"))
    store.remove(store.join(place, "missing"))
    store.remove(store.join(place, "a"), recursive=True)
    assert not store.exists(url)


def test_a_local_folder_keeps_the_contract(tmp_path) -> None:
    check_contract(str(tmp_path))


def test_any_fsspec_url_keeps_the_contract() -> None:
    check_contract("memory://contract")


@s3
def test_every_s3_server_keeps_the_contract(both: str) -> None:
    check_contract(both)


def check_exclusive(url: str) -> None:
    store.write(url, b"owner 1", exclusive=True)
    with pytest.raises(FileExistsError):
        store.write(url, b"owner 2", exclusive=True)
    assert store.read(url) == b"owner 1"


def test_only_one_exclusive_write_wins_on_a_local_disk(tmp_path) -> None:
    check_exclusive(str(tmp_path / "lock"))


@s3
def test_only_one_exclusive_write_wins_on_every_s3_server(both: str) -> None:
    check_exclusive(f"{both}/lock")


@s3
def test_of_many_exclusive_writers_at_once_exactly_one_wins(bucket: str) -> None:
    won: list[int] = []

    def write(number: int) -> None:
        with contextlib.suppress(FileExistsError):
            store.write(f"{bucket}/lock", f"owner {number}".encode(), exclusive=True)
            won.append(number)

    threads = [threading.Thread(target=write, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert store.read(f"{bucket}/lock") == f"owner {won[0]}".encode()


@s3
def test_a_large_file_goes_up_in_parts_and_leaves_none_open(
    both: str, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "ONE_PUT", 1 << 20)
    monkeypatch.setattr(objects, "PART", 5 << 20)
    data = os.urandom(11 << 20)
    (tmp_path / "big").write_bytes(data)
    store.upload(f"{both}/set/big", tmp_path / "big")
    assert store.read(f"{both}/set/big") == data
    assert objects.unfinished_uploads(f"{both}/set/") == []


@s3
def test_an_unfinished_upload_is_listed_under_its_own_prefix_only_and_can_be_freed(
    both: str,
) -> None:
    for key in ("set/x.tar", "set2/y.tar"):
        objects.with_retries(
            both,
            lambda system, _, key=key: system.call_s3(
                "create_multipart_upload", Bucket=both.removeprefix("s3://"), Key=key
            ),
        )
    (found,) = objects.unfinished_uploads(f"{both}/set/")
    assert found.url == f"{both}/set/x.tar"
    objects.abort(found)
    objects.abort(found)
    assert objects.unfinished_uploads(f"{both}/set/") == []
    assert len(objects.unfinished_uploads(f"{both}/set2/")) == 1


# --- names that look like patterns ----------------------------------------------------------------

NEIGHBORS = {  # what must be one name, and names that it matches as a pattern or once decoded
    "set[1]": ["set1"],
    "set[!2]": ["set1", "setx"],
    "set*": ["set1", "set", "set*more"],
    "set?": ["set1", "setx"],
    "**": ["set1"],
    "set{1,2}": ["set1", "set2"],
    "set?versionId=null": ["set"],
    "a#b": ["a"],
    "a%20b": ["a b", "a+b"],
    "a+b": ["a b", "a%2Bb"],
    "100%": ["100", "100%25"],
    "~root": ["set1", "root"],
    "$HOME": ["set1"],
    "caf\u00e9 \U0001f600 [\u96ea]": [
        "cafe\u0301 \U0001f600 [\u96ea]",
        "caf\u00e9 \U0001f600 \u96ea",
    ],
    "a=b&c;d,e:f@g": ["a=b"],
    "'\"\\": ["'\""],
}
names_like_patterns = pytest.mark.parametrize("name", NEIGHBORS)


def check_literal(place: str, name: str, held: Callable[[], set[str]]) -> None:
    """`held` lists the files of `place` without our code."""
    others = NEIGHBORS[name]
    for other in others:
        store.write(store.join(place, other), b"file")
        store.write(store.join(place, "tree", other, "x"), b"below")
    kept = {f"{other}" for other in others} | {f"tree/{other}/x" for other in others}
    file, tree = store.join(place, name), store.join(place, "tree", name)
    for missing in (file, tree):
        assert not store.exists(missing) and store.names(missing) == []
        store.remove(missing)
        store.remove(missing, recursive=True)
    with pytest.raises(FileNotFoundError):
        store.read(file)
    assert held() == kept

    store.write(file, name.encode(), exclusive=True)
    for inside in ("x", f"y/{name}"):
        store.write(store.join(tree, inside), inside.encode())
    assert held() == kept | {name, f"tree/{name}/x", f"tree/{name}/y/{name}"}
    assert store.exists(file) and store.exists(tree)
    assert store.read(file) == name.encode() and store.size(file) == len(name.encode())
    assert store.read(file, 1, 2) == name.encode()[1:2]
    assert store.read(store.join(tree, "y", name)) == f"y/{name}".encode()
    assert store.names(place) == sorted([name, "tree", *others])
    assert store.names(tree) == ["x", "y"] and store.names(store.join(tree, "y")) == [name]

    store.remove(file)
    assert held() == kept | {f"tree/{name}/x", f"tree/{name}/y/{name}"}
    store.remove(tree, recursive=True)
    assert held() == kept
    assert all(store.read(store.join(place, other)) == b"file" for other in others)


# Row 1
@pytest.mark.parametrize("as_url", [False, True])
@names_like_patterns
def test_on_a_local_disk_a_name_is_never_a_pattern(tmp_path, name: str, as_url: bool) -> None:
    def held() -> set[str]:
        return {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}

    check_literal(f"file://{tmp_path}" if as_url else str(tmp_path), name, held)


# Row 1
@names_like_patterns
def test_in_any_fsspec_store_a_name_is_never_a_pattern(name: str) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]
    check_literal("memory://p", name, lambda: {k.removeprefix("/p/") for k in memory.store})


# Row 1
@s3
@names_like_patterns
def test_on_s3_a_key_is_never_a_pattern(bucket: str, name: str) -> None:
    check_literal(f"{bucket}/p", name, lambda: {key.removeprefix("p/") for key in keys(bucket)})


# Row 1
@s3
def test_on_another_s3_server_a_key_is_never_a_pattern(
    swift: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    point_at(swift, monkeypatch)
    place = swift.bucket()
    check_literal(f"{place}/p", "set[1]", lambda: {k.removeprefix("p/") for k in keys(place)})


def boto():
    """A client that no code of ours had a hand in, with the environment's present credentials."""
    return _boto(tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_"))))


@functools.cache  # making one takes half a second
def _boto(_environment: tuple[tuple[str, str], ...]):
    import boto3

    return boto3.session.Session().client("s3")


def keys(bucket: str) -> list[str]:
    return [
        entry["Key"]
        for page in boto()
        .get_paginator("list_objects_v2")
        .paginate(Bucket=bucket.removeprefix("s3://"))
        for entry in page.get("Contents", [])
    ]


@s3
@names_like_patterns
def test_a_large_file_goes_to_exactly_its_key_and_a_signed_range_comes_from_it(
    bucket: str, tmp_path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(store, "ONE_PUT", 1 << 20)
    data = os.urandom((1 << 20) + 1)
    (tmp_path / "big").write_bytes(data)
    for other in NEIGHBORS[name]:
        store.write(f"{bucket}/{other}", bytes(100))
    store.upload(f"{bucket}/{name}", tmp_path / "big")
    assert sorted(keys(bucket)) == sorted([name, *NEIGHBORS[name]])
    ranges = Ranges(1)
    assert ranges.read(f"{bucket}/{name}", 10, 90) == data[10:90]
    assert ranges._failed == 0
    ranges.close()


@s3
def test_a_tree_of_more_keys_than_one_request_takes_goes_and_its_neighbors_stay(
    bucket: str,
) -> None:
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda i: store.write(f"{bucket}/set[1]/{i:04d}", b""), range(1003)))
    for other in ("set1/x", "set[1]x", "set[1].json"):
        store.write(f"{bucket}/{other}", b"")
    store.remove(f"{bucket}/set[1]", recursive=True)
    assert sorted(keys(bucket)) == ["set1/x", "set[1].json", "set[1]x"]


@s3
def test_a_key_that_may_not_be_deleted_is_named(faults: Faults) -> None:
    """The request as a whole is answered with 200 even then."""
    url = faults.server.bucket() + "/set[1]"
    store.write(url, b"")
    denied = (
        "<DeleteResult><Error><Key>set[1]</Key><Code>AccessDenied</Code></Error></DeleteResult>"
    )
    faults.set({"act": "status", "status": 200, "method": "POST", "body": denied})
    with pytest.raises(objects.StoreError, match=r"/set\[1\] at .* deleted .AccessDenied."):
        store.remove(url)


# Row 10
@s3
def test_a_folder_that_a_console_has_made_is_an_empty_folder_and_can_be_removed(
    bucket: str,
) -> None:
    boto().put_object(Bucket=bucket.removeprefix("s3://"), Key="sets/a/", Body=b"")
    assert store.names(f"{bucket}/sets/a") == []
    assert store.names(f"{bucket}/sets") == ["a"]
    store.remove(f"{bucket}/sets/a", recursive=True)
    assert keys(bucket) == []


# --- local disk -----------------------------------------------------------------------------------


def test_a_write_that_fails_half_way_leaves_the_old_bytes_and_no_temporary_file(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "x"
    store.write(target, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(objects.StoreError, match="written .No space left on device.: free some"):
        store.write(target, b"new")
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x"]


def test_a_disk_that_takes_no_more_ends_in_one_line_and_leaves_nothing(tmp_path) -> None:
    code = (
        "import resource, sys; from shards import store\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try: store.write(sys.argv[1], bytes(200_000))\n"
        "except store.StoreError as error: print(error)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "x")]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    advice = "free some space and run the command again"
    assert shown == f"{tmp_path / 'x'}: cannot be written (File too large): {advice}\n"
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_folder_without_write_permission_is_named(tmp_path) -> None:
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(objects.StoreError, match="Permission denied"):
        store.write(tmp_path / "x", b"")


def test_a_file_where_a_folder_should_be_is_named_in_one_line(tmp_path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ValueError, match=r"file.x: cannot be written") as error:
        store.write(tmp_path / "file" / "x", b"")
    assert "\n" not in str(error.value)


def test_temporary_files_are_no_children(tmp_path) -> None:
    (tmp_path / f".x.{'0' * 16}.lacuna-tmp").write_bytes(b"half")
    store.write(tmp_path / "x", b"whole")
    assert store.names(tmp_path) == ["x"]


# --- faults of the network ------------------------------------------------------------------------

PASSING = {
    "503": {"act": "status", "status": 503, "code": "SlowDown"},
    "500": {"act": "status", "status": 500, "code": "InternalError"},
    "429": {"act": "status", "status": 429, "code": "TooManyRequests"},
    "reset": {"act": "reset"},
}
READING = {**PASSING, "short body": {"act": "truncate", "bytes": 100}}


@s3
@pytest.mark.parametrize("fault", READING)
def test_a_read_survives_a_passing_fault(faults: Faults, quick: None, fault: str) -> None:
    url = faults.server.bucket() + "/x"
    data = os.urandom(300_000)
    store.write(url, data)
    faults.set({**READING[fault], "method": "GET", "path": "/x$", "times": 3})
    assert store.read(url, 1000, 200_000) == data[1000:200_000]
    assert [act for _, _, act in faults.log()].count("pass") == 1
    faults.set({**READING[fault], "method": "GET", "path": "/x$", "times": 3})
    assert store.read(url) == data


@s3
def test_a_read_that_stalls_is_made_again(
    faults: Faults, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "STALL", 1)
    url = faults.server.bucket() + "/x"
    store.write(url, b"data")
    faults.set({"act": "stall", "seconds": 8, "method": "GET", "path": "/x$", "times": 1})
    assert store.read(url) == b"data"
    assert len(faults.log()) == 2


@s3
@pytest.mark.parametrize("fault", PASSING)
def test_a_write_survives_a_passing_fault(faults: Faults, quick: None, fault: str) -> None:
    url = faults.server.bucket() + "/x"
    faults.set({**PASSING[fault], "method": "PUT", "path": "/x", "times": 3})
    store.write(url, b"data")
    assert store.read(url) == b"data"


@s3
def test_a_multipart_upload_repeats_only_the_part_that_failed(
    faults: Faults, quick: None, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "ONE_PUT", 1 << 20)
    monkeypatch.setattr(objects, "PART", 5 << 20)
    url = faults.server.bucket() + "/big"
    data = os.urandom(11 << 20)
    (tmp_path / "big").write_bytes(data)
    faults.set({"act": "reset", "method": "PUT", "path": "partNumber=2", "times": 2})
    store.upload(url, tmp_path / "big")
    puts = [path for method, path, _ in faults.log() if method == "PUT"]
    assert len(puts) == 5
    assert store.read(url) == data


@s3
def test_an_answer_lost_after_an_exclusive_write_is_not_taken_for_a_rival(
    faults: Faults, quick: None
) -> None:
    url = faults.server.bucket() + "/lock"
    faults.set({"act": "truncate", "bytes": 0, "method": "PUT", "path": "/lock", "times": 1})
    store.write(url, b"owner 17", exclusive=True)
    with pytest.raises(FileExistsError):
        store.write(url, b"owner 18", exclusive=True)


@s3
def test_a_lasting_outage_ends_in_one_line_that_names_the_endpoint(
    faults: Faults, quick: None
) -> None:
    url = faults.server.bucket() + "/x"
    faults.set({"act": "status", "status": 503, "code": "SlowDown"})
    with pytest.raises(objects.StoreError) as error:
        store.read(url)
    message = str(error.value)
    assert "no valid answer in 10 tries (SlowDown)" in message
    assert faults.server.endpoint in message
    assert len(faults.log()) == 10


@s3
@pytest.mark.parametrize("code", ["AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch"])
def test_wrong_credentials_end_at_once_and_are_never_shown(
    faults: Faults, quick: None, code: str
) -> None:
    url = faults.server.bucket() + "/x"
    faults.set({"act": "status", "status": 403, "code": code})
    with pytest.raises(objects.StoreError) as error:
        store.read(url)
    message = str(error.value)
    assert code in message and "AWS_ACCESS_KEY_ID" in message and "\n" not in message
    assert faults.server.key not in message.split("at ")[0] + message.split("with ")[1]
    assert faults.server.secret not in message
    assert len(faults.log()) == 1


@contextlib.contextmanager
def tls_server(folder):
    """An https server with a certificate of its own that answers everything with 8 bytes."""
    import http.server
    import ssl

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "8")
            self.end_headers()
            self.wfile.write(b"over TLS")

        def log_message(self, *args: object) -> None:
            pass

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "cert.pem").write_bytes(certificate.public_bytes(pem))
    private = serialization.PrivateFormat.PKCS8
    (folder / "key.pem").write_bytes(key.private_bytes(pem, private, serialization.NoEncryption()))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_address[1], str(folder / "cert.pem")
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@s3
@pytest.mark.parametrize(
    ("change", "url", "message"),
    [
        ({"AWS_ENDPOINT_URL": "127.0.0.1:9000"}, "s3://bucket/x", "Invalid endpoint"),
        ({}, "s3://no_such&bucket/x", "Invalid bucket name"),
        ({"AWS_PROFILE": "nobody"}, "s3://bucket/x", "no credentials"),
    ],
)
def test_a_setting_that_cannot_work_ends_at_once(
    bucket: str, monkeypatch: pytest.MonkeyPatch, change: dict, url: str, message: str
) -> None:
    monkeypatch.setattr(objects, "PAUSES", (600.0,))
    for name, value in change.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(objects.StoreError, match=message) as error:
        store.read(url)
    assert "\n" not in str(error.value)


# Row 58
@s3
def test_a_certificate_that_is_not_trusted_is_named_with_the_mend(
    monkeypatch: pytest.MonkeyPatch, bucket: str, tmp_path
) -> None:
    monkeypatch.setattr(objects, "PAUSES", (600.0,))
    with tls_server(tmp_path) as (port, certificate):
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"https://localhost:{port}")
        with pytest.raises(objects.StoreError, match="set AWS_CA_BUNDLE"):
            store.read("s3://bucket/x")
        monkeypatch.setenv("AWS_CA_BUNDLE", certificate)
        monkeypatch.setattr(objects, "_systems", {})
        assert store.read("s3://bucket/x") == b"over TLS"


@s3
def test_a_bucket_that_is_not_there_is_said_to_be_missing(both: str) -> None:
    for ask in (
        lambda: store.read("s3://no-such-bucket-here/x"),
        lambda: store.write("s3://no-such-bucket-here/x", b""),
    ):
        with pytest.raises(objects.StoreError, match="no such bucket"):
            ask()


@s3
def test_an_expired_token_is_renewed_from_the_credentials_file_once(
    faults: Faults, quick: None, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = faults.server.bucket() + "/x"
    store.write(url, b"data")
    credentials = tmp_path / "credentials"
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(credentials))
    monkeypatch.setattr(objects, "_systems", {})
    credentials.write_text("[default]\naws_access_key_id = old\naws_secret_access_key = old\n")
    assert store.read(url) == b"data"
    credentials.write_text("[default]\naws_access_key_id = new\naws_secret_access_key = new\n")
    expired = {"act": "status", "status": 400, "code": "ExpiredToken"}
    faults.set({**expired, "times": 1})
    assert store.read(url) == b"data"
    faults.set(expired)
    with pytest.raises(objects.StoreError, match="ExpiredToken") as error:
        store.read(url)
    assert "profile default" in str(error.value)
    assert len(faults.log()) == 2


@s3
def test_a_forked_child_reads_with_a_filesystem_of_its_own(bucket: str) -> None:
    store.write(f"{bucket}/x", b"data")
    child = os.fork()
    if child == 0:
        os._exit(0 if store.read(f"{bucket}/x") == b"data" else 1)
    assert os.waitpid(child, 0)[1] == 0
