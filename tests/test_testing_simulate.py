"""The simulation runner: what it prints, how it ends, and that a failing seed plays again exactly."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from eventstream.testing import Faults, Network, NetworkStream, run_simulated, simulate
from eventstream.testing.scenarios import KNOWN, Scenario, find_scenario

ROOT = Path(__file__).resolve().parent.parent

BROKEN = """
import anyio
import os
import random
from eventstream.testing.scenarios import Scenario

async def play(seed, note):
    words = {f"word {number}" for number in range(20)}
    note(f"{seed} {sorted(words) == list(words)} {' '.join(words)}")
    async with anyio.create_task_group() as tasks:
        for number in range(5):
            tasks.start_soon(racer, number, note)
    if seed % 10 == 7:
        raise ValueError(f"seed {seed} is bad: {random.random()}")

async def racer(number, note):
    await anyio.sleep(random.choice((0, 1)))
    note(f"{anyio.current_time()} {number}")

async def never(seed, note):
    await anyio.sleep_forever()

async def long(seed, note):
    os.write(1, f"{os.getpid()}\\n".encode())  # at once: two processes write here
    while True:
        await anyio.lowlevel.checkpoint()

async def crash(seed, note):
    if seed == 3:
        os._exit(42)

broken = Scenario("broken", play)
crashing = Scenario("crashing", crash)
stuck = Scenario("stuck", never)
endless = Scenario("endless", long)
number = 3
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where scenarios of a user are, importable here and in processes that are started."""
    (tmp_path / "mine.py").write_text(BROKEN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(tmp_path), str(ROOT))))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    return tmp_path


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "eventstream.testing.simulate", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=50)


class Test_in_this_process:
    def test_seeds_that_pass(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert simulate.main(["network", "--seeds", "3", "--first", "5"]) == 0
        printed = capsys.readouterr().out
        assert re.fullmatch(
            r"network on trio, seeds 5 to 7: 3 seeds in [\d.]+ s, \d+ seeds/s, all passed\n", printed
        ), printed

    @pytest.mark.parametrize("backend", ["trio", "asyncio"])
    def test_a_seed_that_fails(self, folder: Path, backend: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert simulate.main(["mine:broken", "--seeds", "20", "--backend", backend]) == 1
        printed = capsys.readouterr().out
        assert printed.startswith(f"seed 7 of mine:broken failed on {backend}:\nTraceback")
        assert "ValueError: seed 7 is bad" in printed
        assert printed.endswith(f"mine:broken --first 7 --seeds 1 --backend {backend} --verbose\n")

    def test_a_seed_that_is_stuck_fails(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert simulate.main(["mine:stuck"]) == 1
        assert "Deadlock" in capsys.readouterr().out

    def test_the_trace_is_printed_on_demand(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert simulate.main(["mine:broken", "--seeds", "2", "--verbose"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line for line in lines if line.startswith("seed ")] == ["seed 0", "seed 1"]
        assert len(lines) == 2 + 2 * 6 + 1

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["nothing"], "no scenario 'nothing': there are"),
            (["nothing:at_all"], "No module named 'nothing'"),
            (["mine:missing"], "no attribute 'missing'"),
            (["mine:number"], "is not a Scenario: 3"),
            (["network", "--seeds", "0"], "at least 1"),
            (["network", "--jobs", "0"], "at least 1"),
            (["network", "--backend", "curio"], "invalid choice"),
        ],
    )
    def test_wrong_usage(
        self, folder: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as caught:
            simulate.main(arguments)
        assert caught.value.code == 2
        assert said in capsys.readouterr().err

    def test_an_interrupt(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        def interrupted(*_: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(simulate, "play_seed", interrupted)
        assert simulate.main(["network"]) == 130
        assert capsys.readouterr().out.startswith("interrupted after 0 seeds")

    def test_the_order_of_sets_is_fixed_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """It starts itself again only if nobody has chosen."""
        started: list[Any] = []
        monkeypatch.setattr(os, "execv", lambda *arguments: started.append(arguments))
        monkeypatch.setenv("PYTHONHASHSEED", "5")
        simulate._fix_hashing()
        assert started == []
        assert simulate._again(simulate._parse(["network"]), 3).startswith("PYTHONHASHSEED=5 ")
        monkeypatch.delenv("PYTHONHASHSEED")
        simulate._fix_hashing()
        assert started == [(sys.executable, sys.orig_argv)]
        assert os.environ["PYTHONHASHSEED"] == "0"


class Test_in_processes:
    @pytest.mark.parametrize("backend", ["trio", "asyncio"])
    def test_a_failing_seed_plays_again_exactly(
        self, folder: Path, backend: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Found by one of two processes, it fails in the same way in another, with the same trace each time."""
        monkeypatch.delenv("PYTHONHASHSEED", raising=False)
        found = run("mine:broken", "--seeds", "40", "--first", "30", "--jobs", "2", "--backend", backend)
        assert found.returncode == 1, found.stderr
        (error,) = re.findall(r"^ValueError: .*$", found.stdout, re.MULTILINE)
        (command,) = re.findall(r"^again: (.*)$", found.stdout, re.MULTILINE)
        again = [
            subprocess.run(shlex.split(command), capture_output=True, text=True, check=False, timeout=50)
            for _ in range(2)
        ]
        assert [each.returncode for each in again] == [1, 1]
        assert again[0].stdout == again[1].stdout
        assert error in again[0].stdout
        assert len(again[0].stdout.splitlines()) > 8

    def test_seeds_that_pass(self, folder: Path) -> None:
        done = run("network", "--seeds", "4", "--jobs", "2")
        assert (done.returncode, done.stderr) == (0, "")
        assert "4 seeds" in done.stdout

    def test_a_process_that_dies_is_known_by_its_seed(self, folder: Path) -> None:
        done = run("mine:crashing", "--seeds", "6", "--jobs", "2")
        assert done.returncode == 1
        assert (
            "seed 3 of mine:crashing failed on trio:\nthe process that played it died, with exit code 42" in done.stdout
        )

    @pytest.mark.skipif(sys.platform == "win32", reason="there, an interrupt goes to a whole group of processes")
    @pytest.mark.parametrize("jobs", ["1", "2"])
    def test_an_interrupt_leaves_no_process_and_no_traceback(self, folder: Path, jobs: str) -> None:
        command = [sys.executable, "-m", "eventstream.testing.simulate", "mine:endless", "--jobs", jobs]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        ) as running:
            try:
                assert running.stdout is not None
                players = [int(running.stdout.readline()) for _ in range(int(jobs))]
                os.killpg(running.pid, signal.SIGINT)  # as a terminal does it
                printed, complained = running.communicate(timeout=30)
                for player in players:
                    with pytest.raises(ProcessLookupError):
                        os.kill(player, 0)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(running.pid, signal.SIGKILL)
        assert running.returncode == 130
        assert complained == ""
        assert "interrupted after 0 seeds" in printed


class Test_scenarios:
    @pytest.mark.parametrize("name", sorted(KNOWN))
    def test_those_with_short_names_exist(self, name: str) -> None:
        assert find_scenario(name).name == name

    @pytest.mark.parametrize("backend", ["trio", "asyncio"])
    @pytest.mark.parametrize("seed", range(5))
    @pytest.mark.parametrize("name", sorted(KNOWN))
    def test_they_pass_and_repeat_themselves(self, name: str, seed: int, backend: Any) -> None:
        def played() -> list[str]:
            trace: list[str] = []
            run_simulated(find_scenario(name).play, seed, trace.append, seed=seed, backend=backend)
            return trace

        assert played() == played()


class Test_the_network_scenario_can_fail:
    """A check that nothing fails is none: here the kit is broken on purpose."""

    @staticmethod
    def seeds_that_fail(wanted: str, count: int = 40) -> int:
        scenario = find_scenario("network")
        failed = 0
        for seed in range(count):
            try:
                run_simulated(scenario.play, seed, lambda _: None, seed=seed, limit=scenario.limit)
            except Exception as error:
                failed += wanted in "".join(_leaves(error))
        return failed

    def test_if_bytes_are_swapped(self, monkeypatch: pytest.MonkeyPatch) -> None:
        receive = NetworkStream.receive

        async def swapping(self: NetworkStream, max_bytes: int = 65_536) -> bytes:
            return (await receive(self, max_bytes))[::-1]

        monkeypatch.setattr(NetworkStream, "receive", swapping)
        assert self.seeds_that_fail("got wrong bytes", 3) == 3

    def test_if_bytes_are_dropped(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from eventstream.testing.wire import Wire

        put = Wire.put

        def dropping(self: Wire, data: bytes, *rest: Any) -> None:
            put(self, data[:-1] if len(data) == 500 else data, *rest)

        monkeypatch.setattr(Wire, "put", dropping)
        assert self.seeds_that_fail("got wrong bytes", 5) > 2

    def test_if_streams_are_left_open(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async def nothing(self: NetworkStream) -> None:
            await anyio.lowlevel.checkpoint()

        monkeypatch.setattr(NetworkStream, "aclose", nothing)
        assert self.seeds_that_fail("not closed", 3) == 3


def _leaves(error: BaseException) -> list[str]:
    if isinstance(error, BaseExceptionGroup):
        return [text for each in error.exceptions for text in _leaves(each)]
    return [str(error)]


def test_a_scenario_is_an_async_function_of_a_seed() -> None:
    """What users write: any async function, over whatever they test."""
    seen = []

    async def play(seed: int, note: Callable[[str], object]) -> None:
        network = Network(seed, Faults.draw(seed), trace=note)
        network.listen()
        seen.append(seed)

    scenario = Scenario("mine", play)
    run_simulated(scenario.play, 4, lambda _: None)
    assert seen == [4]
