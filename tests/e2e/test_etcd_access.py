# SPDX-License-Identifier: Apache-2.0
"""How we get into a real etcd, or are told why we do not: TLS, certificates, users, roles, tokens."""

from __future__ import annotations

import asyncio
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import pytest

from dataplane.config import EtcdConfig
from dataplane.errors import StoreError
from dataplane.store.etcd import EtcdKeyValue
from tests.e2e.test_etcd_store import KEY, NOTICE_S, ROOT, of, take, use
from tests.etcd import Etcd, Seat
from tests.pki import Authority

USER, PASSWORD = "node", "correct horse"
TOKEN_S = 3.0  # in which a token of 1 s has ended for certain: etcd looks once a second


def secure(directory: Path, authority: Authority, server: tuple[Path, Path], *more: str) -> Etcd:
    """Return an etcd that speaks TLS, with this key and certificate."""
    key, certificate = server
    flags = ["--key-file", str(key), "--cert-file", str(certificate), *more]
    etcd = Etcd(directory, 1, flags, seat=Seat("https"))
    etcd.control_flags = ["--cacert", str(authority.certificate)]
    return etcd


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Return one that all here trust."""
    return Authority(tmp_path_factory.mktemp("pki"), "authority")


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[Etcd]:
    """Yield an etcd that wants no certificate of us."""
    with secure(tmp_path_factory.mktemp("tls"), authority, authority.issue("server")) as etcd:
        yield etcd


def fails(config: EtcdConfig) -> str:
    """Return the one line of a store that cannot be read; nothing secret is in it."""
    with pytest.raises(StoreError) as caught:
        use(config, EtcdKeyValue.snapshot)
    text = str(caught.value)
    assert "\n" not in text
    assert PASSWORD not in text
    return text


# --- TLS ------------------------------------------------------------------------------------------------


def test_authority_alone(tls: Etcd, authority: Authority) -> None:
    """With nothing but the certificate of the authority a TLS server is read, written and watched."""

    async def work(keys: EtcdKeyValue) -> None:
        made = await keys.put(KEY, "one", None, 0)
        async with aclosing(keys.watch(made.changed - 1)) as changes:
            assert await take(changes, 1) == [made]

    use(of(tls, cafile=authority.certificate), work)


def test_case_120_wrong_authority(tls: Etcd, tmp_path: Path) -> None:
    """A server that nobody we trust vouches for is told nothing, and the line names what to check."""
    other = Authority(tmp_path, "other")
    text = fails(of(tls, cafile=other.certificate))
    assert text.startswith(f"etcd {tls.urls[0]}: ")
    assert "nobody we trust vouches for it. Check --etcd-cafile" in text


def test_case_120_no_authority(tls: Etcd) -> None:
    """Without --etcd-cafile the authorities of the system decide, which do not know this one."""
    assert "nobody we trust vouches for it" in fails(of(tls))


def test_plain_words_to_a_tls_server(tls: Etcd, authority: Authority) -> None:
    """http:// to a server that speaks TLS fails with a line that names the server."""
    plain = tls.urls[0].replace("https", "http")
    assert f"etcd {plain}" in fails(EtcdConfig(endpoints=(plain,)))


def test_case_120_expired_certificate(tmp_path: Path) -> None:
    """A server whose certificate is over is refused, and the line says that it has expired."""
    authority = Authority(tmp_path / "pki", "authority")
    etcd = secure(tmp_path / "etcd", authority, authority.issue("server", days=-1))
    try:
        etcd.members[0].wait_listening()
        assert "it has expired" in fails(of(etcd, cafile=authority.certificate))
    finally:
        etcd.close()


def test_case_120_certificate_for_another(tmp_path: Path) -> None:
    """A server whose certificate is good, but for another address, is refused, and the line says so."""
    authority = Authority(tmp_path / "pki", "authority", "192.0.2.99")
    etcd = secure(tmp_path / "etcd", authority, authority.issue("server"))
    try:
        etcd.members[0].wait_listening()
        assert "it is not for 127.0.0.1. Check --etcd-endpoints" in fails(
            of(etcd, cafile=authority.certificate)
        )
    finally:
        etcd.close()


def test_case_120_no_certificate_of_ours(tmp_path: Path) -> None:
    """A server that wants a certificate and gets none, a stranger's or an old one: the line says that."""
    authority, stranger = Authority(tmp_path / "pki", "authority"), Authority(tmp_path / "other", "other")
    trust = ("--client-cert-auth", "--trusted-ca-file", str(authority.certificate))
    etcd = secure(tmp_path / "etcd", authority, authority.issue("server"), *trust)
    try:
        etcd.members[0].wait_listening()
        text = fails(of(etcd, cafile=authority.certificate))
        assert text.endswith("it wants a certificate of us. Give --etcd-certfile and --etcd-keyfile")
        for key, certificate in (stranger.issue("node"), authority.issue("node", days=-1)):
            text = fails(of(etcd, cafile=authority.certificate, keyfile=key, certfile=certificate))
            assert text.endswith("it refuses our certificate. Check --etcd-certfile and --etcd-keyfile")
    finally:
        etcd.close()


def test_case_120_nothing_is_said_in_plain_words(authority: Authority) -> None:
    """To an https:// server that speaks no TLS nothing is sent but the greeting of TLS, again and again."""
    heard: list[bytes] = []

    def listen(sock: socket.socket) -> None:
        while True:
            try:
                with sock.accept()[0] as one:
                    heard.append(one.recv(1 << 16))
                    one.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            except OSError:
                return

    with socket.create_server(("127.0.0.1", 0)) as sock:
        thread = threading.Thread(target=listen, args=(sock,))
        thread.start()
        url = f"https://127.0.0.1:{sock.getsockname()[1]}"
        config = EtcdConfig((url,), cafile=authority.certificate, username=USER, password=PASSWORD)
        try:
            for work in (EtcdKeyValue.snapshot, EtcdKeyValue.revision):
                with pytest.raises(StoreError, match=f"etcd {url}: no TLS"):
                    use(config, work)
        finally:
            sock.shutdown(socket.SHUT_RDWR)
            thread.join()
    assert len(heard) > 1
    assert {octets[:2] for octets in heard} == {b"\x16\x03"}  # a record of a TLS handshake
    assert not [octets for octets in heard if USER.encode() in octets or PASSWORD.encode() in octets]


def test_certificate_of_ours(tmp_path: Path) -> None:
    """A server that wants a certificate of us takes ours; files that are replaced on disk count at once."""
    authority, stranger = Authority(tmp_path / "pki", "authority"), Authority(tmp_path / "other", "other")
    trust = ("--client-cert-auth", "--trusted-ca-file", str(authority.certificate))
    etcd = secure(tmp_path / "etcd", authority, authority.issue("server"), *trust)
    key, certificate = authority.issue("node")
    etcd.control_flags += ["--key", str(key), "--cert", str(certificate)]
    ours = tmp_path / "node.key", tmp_path / "node.crt"
    config = of(etcd, cafile=authority.certificate, keyfile=ours[0], certfile=ours[1])

    def place(pair: tuple[Path, Path]) -> None:
        for source, target in zip(pair, ours, strict=True):
            shutil.copyfile(source, target)

    async def work(keys: EtcdKeyValue) -> None:
        place(stranger.issue("node"))
        with pytest.raises(StoreError, match="etcd https"):
            await keys.snapshot()
        place((key, certificate))
        await keys.snapshot()
        place(authority.issue("renewed"))
        etcd.members[0].stop()
        with pytest.raises(StoreError):
            await keys.revision()
        etcd.members[0].start()
        etcd.wait_healthy()
        await keys.revision()

    try:
        etcd.wait_healthy()
        assert "etcd https" in fails(of(etcd, cafile=authority.certificate))
        use(config, work)
    finally:
        etcd.close()


def test_opened_anew(tmp_path: Path) -> None:
    """What is read anew counts if it works; if not, the old connection and its watch go on, untouched."""
    authority, stranger = Authority(tmp_path / "pki", "authority"), Authority(tmp_path / "other", "other")
    trust = ("--client-cert-auth", "--trusted-ca-file", str(authority.certificate))
    etcd = secure(tmp_path / "etcd", authority, authority.issue("server"), *trust)
    pair = authority.issue("node")
    etcd.control_flags += ["--key", str(pair[0]), "--cert", str(pair[1])]
    ours = tmp_path / "node.key", tmp_path / "node.crt"
    config = of(etcd, cafile=authority.certificate, keyfile=ours[0], certfile=ours[1])

    def place(pair: tuple[Path, Path]) -> None:
        for source, target in zip(pair, ours, strict=True):
            shutil.copyfile(source, target)

    async def work(keys: EtcdKeyValue) -> None:
        first = await keys.put(KEY, "one", None, 0)
        async with aclosing(keys.watch(first.changed - 1)) as changes:
            assert await take(changes, 1) == [first]
            place(stranger.issue("node"))
            with pytest.raises(StoreError, match="etcd https"):
                await keys.reopen()
            second = await keys.put(KEY, "two", None, first.changed)
            assert await take(changes, 1) == [second]
            place(authority.issue("renewed"))
            await keys.reopen()
            third = await keys.put(KEY, "three", None, second.changed)
            assert await take(changes, 1) == [third]  # it comes to its end by itself
        async with aclosing(keys.watch(second.changed)) as changes:
            assert await take(changes, 1) == [third]

    try:
        etcd.wait_healthy()
        place(pair)
        use(config, work)
    finally:
        etcd.close()


@pytest.mark.parametrize(
    ("text", "reason"),
    [pytest.param(None, "No such file or directory", id="missing"), pytest.param("", "etcd", id="empty")],
)
def test_unusable_file(tls: Etcd, tmp_path: Path, text: str | None, reason: str) -> None:
    """A TLS file that cannot be read or holds nothing is one line."""
    path = tmp_path / "ca.pem"
    if text is not None:
        path.write_text(text)
    assert reason in fails(of(tls, cafile=path))


# --- users ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    """Yield an etcd with users, whose tokens last a second."""
    flags = ("--auth-token-ttl", "1")
    with Etcd(tmp_path_factory.mktemp("users"), 1, flags) as etcd:
        etcd.ctl("role", "add", "flannel")
        etcd.ctl("role", "grant-permission", "flannel", "readwrite", f"{ROOT}/", "--prefix=true")
        etcd.ctl("role", "add", "nothing")
        for user, role in ((USER, "flannel"), ("guest", "nothing"), ("root", "root")):
            etcd.ctl("user", "add", f"{user}:{PASSWORD}")
            etcd.ctl("user", "grant-role", user, role)
        etcd.ctl("auth", "enable")
        etcd.control_flags = ["--user", f"root:{PASSWORD}"]
        yield etcd


def test_user(guarded: Etcd) -> None:
    """A user whose role may do no more than read and write the prefix does all that a node does."""

    async def work(keys: EtcdKeyValue) -> None:
        made = await keys.put(KEY, "one", 60, 0)
        renewed = await keys.put(KEY, "two", 60, made.changed)
        async with aclosing(keys.watch(made.changed)) as changes:
            assert [record.value for record in await take(changes, 1)] == ["two"]
        await keys.delete(KEY, renewed.changed)

    use(of(guarded, username=USER, password=PASSWORD), work)


def test_case_119_token_ends(guarded: Etcd) -> None:
    """A token that the server has forgotten is replaced, by calls and by watches, without a word."""

    async def work(keys: EtcdKeyValue) -> None:
        await keys.snapshot()
        keys._client._token = "forgotten.1"
        made = await keys.put(KEY, "one", None, 0)
        keys._client._token = "forgotten.2"
        async with aclosing(keys.watch(made.changed - 1)) as changes:
            assert [record.value for record in await take(changes, 1)] == ["one"]
        await keys.delete(KEY, made.changed)

    use(of(guarded, username=USER, password=PASSWORD), work)


def test_case_119_token_runs_out(guarded: Etcd) -> None:
    """A token of 1 s ends while a watch goes on: the watch does not, and a renewal gets another token."""

    async def work(keys: EtcdKeyValue) -> None:
        made = await keys.put(KEY, "one", 60, 0)
        token = keys._client._token
        async with aclosing(keys.watch(made.changed)) as changes:
            told = asyncio.ensure_future(anext(changes))
            # Who asked etcd whether it knows the token still would make it last longer.
            assert not (await asyncio.wait({told}, timeout=TOKEN_S))[0]
            assert keys._client._token == token
            renewed = await keys.put(KEY, "two", 60, made.changed)
            assert keys._client._token != token, "it had not run out"
            async with asyncio.timeout(NOTICE_S):
                assert (await told).changed == renewed.changed
            again = await keys.put(KEY, "three", 60, renewed.changed)
            assert [record.changed for record in await take(changes, 1)] == [again.changed]
        await keys.delete(KEY, again.changed)

    use(of(guarded, username=USER, password=PASSWORD), work)
    assert guarded.leases() == []


def test_wrong_password(guarded: Etcd) -> None:
    """A wrong password is told as that, without the password."""
    text = fails(of(guarded, username=USER, password="wrong"))
    assert text == f"etcd {guarded.urls[0]} refuses user {USER}: check --etcd-username and --etcd-password"


def test_no_user(guarded: Etcd) -> None:
    """A server that wants a user says so."""
    assert "wants a user: give --etcd-username and --etcd-password" in fails(of(guarded))


def test_no_permission(guarded: Etcd) -> None:
    """A user whose role does not reach the prefix is told which grant is missing."""
    text = fails(of(guarded, username="guest", password=PASSWORD))
    assert text == (
        f"etcd {guarded.urls[0]}: user guest may not do that; grant readwrite on {ROOT}/ as a prefix"
    )


def test_users_that_nobody_asked_for(tmp_path: Path) -> None:
    """A user is given, and the server knows none: it is used all the same."""
    with Etcd(tmp_path / "etcd") as etcd:
        use(of(etcd, username=USER, password=PASSWORD), EtcdKeyValue.snapshot)
