"""Fuzzes the frame decoder: `python fuzz/frames.py --runs 1000000 --seed 1` mutates valid streams of frames.

For a coverage-guided run hand `check` to any fuzzer that calls with bytes: `atheris.Setup(sys.argv, frames.check)`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from random import Random
from typing import Final

from eventstream.errors import BadFrame
from eventstream.pipes.frames import (
    MAX_CONTROL,
    MAX_PAYLOAD,
    MAX_POSITION,
    Ack,
    Close,
    Data,
    Decoder,
    Fin,
    Frame,
    Hello,
    Ping,
    Pong,
    Reject,
    Welcome,
    encode,
    encode_data,
)

KEPT: Final = 5 + MAX_CONTROL  # bytes: the most that a decoder may keep back
INTERESTING: Final = (0, 1, 8, 9, 16, 127, 128, 255, MAX_CONTROL, MAX_PAYLOAD + 8, MAX_PAYLOAD + 9, 2**31, 2**32 - 1)
CORPUS: Final = (
    encode(Hello(1, b"p" * 16, 1, 0, 1000, b"s" * 32, token=b"t" * 32)),
    encode(Hello(1, b"p" * 16, 2, 5, MAX_POSITION, b"s" * 32, epoch=b"e" * 16)),
    encode(Welcome(1, b"e" * 16, 5, 1000, b"s" * 32)),
    encode(Reject("busy", "10000 pipes are open")),
    encode(Close("finished")),
    encode(Ack(5, MAX_POSITION)),
    encode(Fin(5)),
    encode(Ping(1)),
    encode(Pong(1)),
    encode_data(0, 1) + b"x",
    encode_data(MAX_POSITION - 300, 300) + bytes(300),
)


def check(data: bytes) -> None:
    """Fails if the decoder raises anything but BadFrame, keeps too much, or if it matters how the bytes are cut."""
    whole, whole_error = decode(data, max(1, len(data)))
    for step in (1, 1 + len(data) % 61):
        frames, error = decode(data, step)
        assert error == whole_error, f"{error} if cut by {step}, {whole_error} if not"
        assert error or flat(frames) == flat(whole), f"other frames if cut by {step}"


def decode(data: bytes, step: int) -> tuple[list[Frame], str | None]:
    """The frames of `data` fed in chunks of `step` bytes, and why it ended early."""
    decoder, frames = Decoder(), list[Frame]()
    try:
        for at in range(0, len(data), step):
            frames += decoder.feed(data[at : at + step])
            assert len(decoder._kept) < KEPT, f"{len(decoder._kept)} bytes are kept back"
    except BadFrame as error:
        assert not decoder._kept, "bytes are kept back after a bad frame"
        assert why_refused(decoder) == error.why, "it went on after a bad frame"
        return frames, error.why
    return frames, None


def why_refused(decoder: Decoder) -> str | None:
    """What a decoder says to a good frame."""
    try:
        decoder.feed(encode(Ping(1)))
    except BadFrame as error:
        return error.why
    return None


def flat(frames: list[Frame]) -> list[Frame | tuple[int, int]]:
    """The frames, with each byte of payload for itself."""
    result: list[Frame | tuple[int, int]] = []
    for frame in frames:
        if isinstance(frame, Data):
            result += enumerate(frame.payload, frame.sequence)
        else:
            result.append(frame)
    return result


def mutated(random: Random) -> bytes:
    """A few valid frames with a few mistakes; now and then none."""
    data = bytearray(b"".join(random.choices(CORPUS, k=random.randint(1, 4))))
    for _ in range(random.choice((0, 1, 1, 1, 2, 4))):
        at = random.randrange(len(data) + 1)
        match random.randrange(6):
            case 0:
                data[at : at + 1] = random.randbytes(1)
            case 1:
                del data[at : at + random.randint(1, 20)]
            case 2:
                data[at:at] = random.randbytes(random.randint(1, 20))
            case 3:
                data[at : at + 4] = random.choice(INTERESTING).to_bytes(4, "big")
            case 4:
                data[at : at + 1] = bytes([data[at] ^ 1 << random.randrange(8)]) if at < len(data) else b""
            case _:
                data[at:at] = random.choice(CORPUS)
    return bytes(data)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs `check` on mutated streams; prints the input that fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    random = Random(options.seed)
    began = time.perf_counter()
    for run in range(options.runs):
        data = mutated(random)
        try:
            check(data)
        except BaseException:
            print(f"run {run} of seed {options.seed} failed: check({data!r})", file=sys.stderr)
            raise
    seconds = time.perf_counter() - began
    print(f"{options.runs} runs in {seconds:.1f} s: {options.runs / seconds:.0f} runs/s, seed {options.seed}, all well")


if __name__ == "__main__":
    main()
