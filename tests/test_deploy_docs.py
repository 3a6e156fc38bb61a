"""The server that docs/how-to/deploy.md shows runs as shown: in a process of its own, with certificates and signals."""

from __future__ import annotations

import hashlib
import re
import shutil
import signal
import ssl
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from cli_support import ROOT, free_port

from eventstream import EventBus, NotAuthorized, Server, Topic

PAGE = (ROOT / "docs" / "how-to" / "deploy.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
PROGRAMS = [text for kind, text in BLOCKS if kind == "python"]


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What the page defines."""
    module = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    exec(compile("".join(PROGRAMS), "deploy.md", "exec"), module.__dict__)
    return module


@pytest.fixture
def authority(tmp_path: Path) -> Any:
    """Who signs, with the files that the page names."""
    trustme = pytest.importorskip("trustme")
    ca = trustme.CA()
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    for name in ("localhost", "shop.example"):
        issued = ca.issue_cert(name)
        issued.private_key_pem.write_to_path(tmp_path / f"{name}.key")
        issued.cert_chain_pems[0].write_to_path(tmp_path / f"{name}.pem")
    return ca


def test_the_configuration_is_what_the_program_reads(page: Any) -> None:
    (text,) = [text for kind, text in BLOCKS if kind == "toml"]
    settings = msgspec.toml.decode(text, type=page.Settings)
    assert list(settings.clients) == ["shop", "screens"]
    assert all(re.fullmatch("[0-9a-f]{64}", client.token) for client in settings.clients.values())


@pytest.mark.may_block
@pytest.mark.skipif(sys.platform == "win32", reason="the page is about systems with signals and Unix sockets")
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_server_serves_by_its_rules_reloads_and_drains(
    page: Any, authority: Any, backend: str, tmp_path: Path
) -> None:
    """Over TLS and the Unix socket; SIGHUP and SIGTERM do what the page says."""
    port, way = free_port(), tmp_path / "bus.sock"
    tokens = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("shop", "screens")}
    (tmp_path / "server.py").write_text(PROGRAMS[0])
    (tmp_path / "bus.toml").write_text(
        f'host = "127.0.0.1"\nport = {port}\nsocket = "{way}"\n'
        f'cert = "{tmp_path}/localhost.pem"\nkey = "{tmp_path}/localhost.key"\n'
        f'[clients.shop]\ntoken = "{tokens["shop"]}"\npublish = ["orders"]\nsubscribe = ["orders"]\n'
        f'[clients.screens]\ntoken = "{tokens["screens"]}"\nsubscribe = ["orders"]\n'
    )

    async def use() -> None:
        with anyio.fail_after(20):
            async with page.connect("localhost", port, str(tmp_path / "ca.pem"), "shop") as shop:
                await shop.publish(page.orders, page.Order("1", 2.5))
                with pytest.raises(NotAuthorized):
                    await shop.refresh(page.orders)
                server.send_signal(signal.SIGHUP)
                async with page.open_bus(f"unix://{way}", token="screens") as screens:
                    async with screens.view(page.orders) as view:
                        await view.ready()
                        assert dict(view) == {"1": page.Order("1", 2.5)}
                    with pytest.raises(NotAuthorized):
                        await screens.publish(page.orders, page.Order("2", 2.5))
                async with page.connect("localhost", port, str(tmp_path / "ca.pem"), "guessed") as nobody:
                    with pytest.raises(NotAuthorized):
                        await nobody.wait_connected()
                server.send_signal(signal.SIGTERM)  # while a client is connected

    command = [sys.executable, str(tmp_path / "server.py"), str(tmp_path / "bus.toml")]
    with subprocess.Popen(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == b"ready\n"
            first = msgspec.json.decode(server.stdout.readline())
            assert first["clients"] == 0
            anyio.run(use, backend=backend)
            assert server.wait(20) == 0
            assert not way.exists()
        finally:
            server.kill()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_certificates_are_identities(page: Any, authority: Any, backend: str, tmp_path: Path) -> None:
    """As the page makes them on both sides."""
    files = {name: str(tmp_path / name) for name in ("ca.pem", "localhost.pem", "localhost.key")}
    words = Topic("words", str)
    context: ssl.SSLContext = page.mutual(files["localhost.pem"], files["localhost.key"], files["ca.pem"])

    async def main() -> None:
        port = free_port()
        tcp = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=port)
        listener = page.TLSListener(tcp, context, standard_compatible=False)
        async with EventBus() as bus, anyio.create_task_group() as tasks:
            server = Server(bus, [words], authenticate=page.by_certificate)
            await tasks.start(server.serve, listener)
            mine = (files["ca.pem"], str(tmp_path / "shop.example.pem"), str(tmp_path / "shop.example.key"))
            with anyio.fail_after(20):
                async with page.connect_mutually("localhost", port, *mine) as client:
                    await client.publish(words, "a")
                    assert server.revoke("shop.example") == 1
                async with page.connect("localhost", port, files["ca.pem"], "token") as client:
                    with anyio.move_on_after(0.3) as waiting:
                        await client.wait_connected()
                    assert waiting.cancelled_caught
            tasks.cancel_scope.cancel()

    anyio.run(main, backend=backend)


@pytest.mark.may_block
@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd")
def test_the_unit_is_one(tmp_path: Path) -> None:
    """It is only our programs that are not there."""
    (text,) = [text for kind, text in BLOCKS if kind == "ini"]
    unit = tmp_path / "bus.service"
    unit.write_text(text.replace("/opt/bus/venv/bin/python", "/bin/true"))
    verified = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)
    complaints = [line for line in verified.stderr.splitlines() if "bus.service" in line]
    assert complaints == []
