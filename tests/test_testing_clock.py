"""Simulated time: it jumps, it ends what is stuck, and the same seed gives the same run."""

from __future__ import annotations

import random
import sys
from collections.abc import Awaitable, Callable
from typing import Any, Literal

import anyio
import pytest

from eventstream.testing import Deadlock, OutOfTime, run_simulated

Backend = Literal["asyncio", "trio"]


@pytest.fixture
def backend(anyio_backend: str) -> str:
    """For plain tests: the loop is started by the test itself."""
    return anyio_backend


class Test_time:
    def test_sleeps_take_no_time(self, backend: Backend) -> None:
        async def main() -> float:
            await anyio.sleep(3600)
            return anyio.current_time()

        assert run_simulated(main, backend=backend) == pytest.approx(3600)

    def test_it_begins_at_zero_and_stands_still_while_tasks_run(self, backend: Backend) -> None:
        async def main() -> list[float]:
            times = [anyio.current_time()]
            for _ in range(100):
                await anyio.lowlevel.checkpoint()
            return [*times, anyio.current_time()]

        assert run_simulated(main, backend=backend) == [0, 0]

    def test_timers_fire_in_order(self, backend: Backend) -> None:
        async def main() -> list[float]:
            woken = []

            async def wake(after: float) -> None:
                await anyio.sleep(after)
                woken.append(after)

            async with anyio.create_task_group() as tasks:
                for after in (5, 1, 86, 0.001):
                    tasks.start_soon(wake, after)
            return woken

        assert run_simulated(main, backend=backend) == [0.001, 1, 5, 86]

    def test_timeouts_fire(self, backend: Backend) -> None:
        async def main() -> float:
            with anyio.move_on_after(7):
                await anyio.sleep_forever()
            return anyio.current_time()

        assert run_simulated(main, backend=backend) == pytest.approx(7)


class Test_a_run_that_is_stuck:
    async def _wait(self) -> None:
        await anyio.Event().wait()

    async def _wait_shielded(self) -> None:
        with anyio.CancelScope(shield=True):
            await anyio.Event().wait()

    async def _wait_in_children(self) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._wait)
            tasks.start_soon(self._wait_shielded)

    async def _wait_again(self) -> None:
        try:
            await self._wait()
        finally:
            await self._wait_shielded()

    @pytest.mark.parametrize("way", ["_wait", "_wait_shielded", "_wait_in_children", "_wait_again"])
    def test_deadlock_says_where(self, backend: Backend, way: str) -> None:
        with pytest.raises(Deadlock, match=r"test_testing_clock.py:\d+") as caught:
            run_simulated(getattr(self, way), backend=backend)
        assert any("_wait" in task for task in caught.value.tasks)
        assert caught.value.time == 0

    def test_of_many_tasks_the_first_are_named(self, backend: Backend) -> None:
        async def main() -> None:
            async with anyio.create_task_group() as tasks:
                for _ in range(60):
                    tasks.start_soon(self._wait)

        with pytest.raises(Deadlock, match="and 21 more") as caught:
            run_simulated(main, backend=backend)
        assert len(caught.value.tasks) == 61

    async def _tick(self) -> None:
        while True:  # noqa: ASYNC110  # a run that has no end
            await anyio.sleep(10)

    async def _tick_shielded(self) -> None:
        with anyio.CancelScope(shield=True):
            await self._tick()

    @pytest.mark.parametrize("way", ["_tick", "_tick_shielded"])
    def test_the_limit_ends_it(self, backend: Backend, way: str) -> None:
        with pytest.raises(OutOfTime, match="limit") as caught:
            run_simulated(getattr(self, way), backend=backend, limit=1000)
        assert 1000 <= caught.value.time <= 1010

    def test_what_is_cancelled_may_clean_up(self, backend: Backend) -> None:
        cleaned = []

        async def main() -> None:
            try:
                await anyio.sleep_forever()
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(1)
                cleaned.append(anyio.current_time())

        with pytest.raises(Deadlock):
            run_simulated(main, backend=backend)
        assert cleaned == [pytest.approx(1)]


class Test_what_comes_out:
    def test_an_error_comes_out_as_it_is(self, backend: Backend) -> None:
        async def main() -> None:
            raise KeyError("mine")

        with pytest.raises(KeyError, match="mine"):
            run_simulated(main, backend=backend)

    def test_the_random_module_is_seeded_and_put_back(self, backend: Backend) -> None:
        async def main() -> float:
            return random.random()

        state = random.getstate()
        first = run_simulated(main, seed=3, backend=backend)
        assert first == run_simulated(main, seed=3, backend=backend)
        assert first != run_simulated(main, seed=4, backend=backend)
        assert random.getstate() == state

    def test_trio_that_is_not_installed_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "eventstream.testing.clock_trio", None)
        with pytest.raises(RuntimeError, match=r'pip install "eventstream\[testing\]"'):
            run_simulated(anyio.sleep, 1)

    def test_within_a_loop_it_refuses(self, backend: Backend) -> None:
        async def main() -> None:
            with pytest.raises(RuntimeError, match="lready running"):
                run_simulated(anyio.sleep, 1, backend=backend)

        anyio.run(main, backend=backend)

    async def _fail_while_cleaning(self) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise KeyError("cleaning")

    def test_on_trio_what_fails_while_a_stuck_run_is_cancelled_is_told_with_it(self) -> None:
        with pytest.raises(Deadlock) as caught:
            run_simulated(self._fail_while_cleaning)
        assert isinstance(caught.value.__cause__, KeyError)

    def test_on_asyncio_it_is_logged(self, caplog: pytest.LogCaptureFixture) -> None:
        with pytest.raises(Deadlock):
            run_simulated(self._fail_while_cleaning, backend="asyncio")
        assert "cleaning" in caplog.text

    def test_an_unknown_backend_is_an_error(self) -> None:
        with pytest.raises(LookupError, match="curio"):
            run_simulated(anyio.sleep, 1, backend="curio")  # type: ignore[arg-type]


async def _crowd(trace: Callable[[Any], None]) -> None:
    """Tasks that race, wait with equal deadlines, and are cancelled together."""

    async def one(name: int, tasks: anyio.abc.TaskGroup) -> None:
        try:
            for turn in range(3):
                with anyio.move_on_after(1):
                    await (anyio.sleep(name % 3) if turn else anyio.lowlevel.checkpoint())
                trace((name, turn, anyio.current_time()))
            await anyio.sleep_forever()
        finally:
            trace((name, "cancelled"))

    async with anyio.create_task_group() as tasks:
        for name in range(30):
            tasks.start_soon(one, name, tasks)
        await anyio.sleep(50)
        tasks.cancel_scope.cancel()


class Test_the_seed:
    @staticmethod
    def run(backend: Backend, seed: int, scenario: Callable[..., Awaitable[None]] = _crowd) -> list[Any]:
        seen: list[Any] = []
        run_simulated(scenario, seen.append, seed=seed, backend=backend)
        return seen

    @pytest.mark.parametrize("seed", range(5))
    def test_the_same_seed_gives_the_same_run(self, backend: Backend, seed: int) -> None:
        first = self.run(backend, seed)
        assert len(first) == 120
        junk = [object() for _ in range(10_000)]  # other addresses for what the second run makes
        assert self.run(backend, seed) == first
        del junk

    def test_on_trio_another_seed_gives_another_order(self) -> None:
        assert self.run("trio", 1) != self.run("trio", 2)
