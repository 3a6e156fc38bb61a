"""No byte is lost, doubled or moved: two sessions under any writes, reads, cuts and redials, against what was said.

Nothing runs here but the sessions, the decoders and the handshake: a link is two queues of bytes, delivered in any
portions, and each end notices the link's end at its own time. So a redial may find a server that still believes in the
old link, bytes may arrive on a link that was fenced, and a HELLO may come after a later one.
"""

from __future__ import annotations

from random import Random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from eventstream.pipes.frames import Ack, Data, Decoder, Frame, Hello, Reject, Welcome, encode, encode_data
from eventstream.pipes.handshake import check_welcome, make_hello, make_welcome, refuse_resume
from eventstream.pipes.liveness import Verdict
from eventstream.pipes.session import Session, State

PIPE, TOKEN, EPOCH = b"p" * 16, b"t" * 32, b"e" * 16
HEARTBEAT = 10.0
CONTENT = Random(11).randbytes(1 << 17)  # what both ends say: a byte at a wrong place shows
ends = st.sampled_from(["dialer", "server"])
capacities = st.sampled_from([1, 2, 7, 64, 1000])
shares = st.one_of(st.just(1.0), st.floats(0, 1))
sizes = st.one_of(st.integers(0, 8), st.integers(0, 1500))


class Link:
    """One connection: for each end, the bytes on their way to it."""

    def __init__(self) -> None:
        self.towards = {"dialer": bytearray(), "server": bytearray()}


class End:
    """One end of the pipe, with the model's own count of what it said and heard."""

    token = TOKEN

    def __init__(self, name: str, other: str, capacity: int) -> None:
        self.name, self.other = name, other
        self.session = Session(capacity, HEARTBEAT)
        self.capacity = capacity
        self.said = 0
        self.heard = bytearray()
        self.link: Link | None = None
        self.decoder = Decoder()

    @property
    def generation(self) -> int:
        return self.session.generation

    def check_resume(self, position: int) -> None:
        self.session.writer.check_resume(position)

    def attach(self, link: Link, generation: int, peer: Ack, now: float) -> None:
        self.link, self.decoder = link, Decoder()
        self.session.link_up(generation, peer, now)

    def lose(self) -> None:
        self.link = None
        self.session.link_lost(ConnectionError("cut"))

    def take(self, limit: int) -> None:
        data = self.session.reader.take(limit)
        assert len(data) <= limit
        self.heard += data


class Machine(RuleBasedStateMachine):
    """Whatever happens to the links, each end hears a beginning of what the other said."""

    @initialize(dialer=capacities, server=capacities, is_linked=st.booleans())
    def begin(self, dialer: int, server: int, is_linked: bool) -> None:
        self.now = 0.0
        self.ends = {"dialer": End("dialer", "server", dialer), "server": End("server", "dialer", server)}
        self.dialer, self.server = self.ends["dialer"], self.ends["server"]
        self.dials = 0
        self.epoch = b""
        self.hellos: list[Hello] = []
        self.marks: dict[str, tuple[int, int, int, int]] = dict.fromkeys(self.ends, (0, 0, 0, 0))
        if is_linked:
            self.dial(welcome_is_lost=False)

    # What programs do

    @rule(name=ends, size=sizes)
    def write(self, name: str, size: int) -> None:
        """Accepted whole if it fits, else not at all."""
        end = self.ends[name]
        if not end.session.writer.finished:
            fits = size <= end.session.writer.ring.free
            assert end.session.writer.accept(CONTENT[end.said : end.said + size]) == fits
            end.said += size if fits else 0

    @rule(name=ends, size=sizes)
    def pass_on(self, name: str, size: int) -> None:
        """Onto the link at once, if nothing goes before it; else nothing has happened."""
        end = self.ends[name]
        session = end.session
        if end.link is not None:
            before = session.statistics()
            may_go = not session.has_output and not session.writer.finished and size <= session.writer.ring.free
            frame = session.pass_on(CONTENT[end.said : end.said + size])
            if frame is None:
                assert session.statistics() == before
            else:
                assert may_go
                assert not session.has_output
                end.said += size
                end.link.towards[end.other] += frame

    @rule(name=ends, limit=st.integers(1, 2000))
    def take(self, name: str, limit: int) -> None:
        self.ends[name].take(limit)

    @rule(name=ends)
    def finish(self, name: str) -> None:
        self.ends[name].session.writer.finish()

    # What links do

    @rule(name=ends, repeated=st.sampled_from([0, 1, 100]))
    def send(self, name: str, repeated: int = 0) -> None:
        """All that an end has to say goes onto its link, and it has nothing more to say then."""
        end = self.ends[name]
        if end.link is not None:
            end.link.towards[end.other] += repeating(end.session.next_output(), repeated)
            assert not end.session.has_output
            assert end.session.next_output() == b""

    @rule(name=ends, share=shares)
    def deliver(self, name: str, share: float) -> None:
        """Some bytes arrive, cut anywhere."""
        end = self.ends[name]
        if end.link is not None:
            queue = end.link.towards[name]
            count = round(len(queue) * share)
            chunk = bytes(queue[:count])
            del queue[:count]
            end.session.apply(end.decoder.feed(chunk), lambda: self.now)
            assert not end.session.is_closed

    @rule(name=ends, size=sizes, share=shares, is_taken=st.booleans())
    def say(self, name: str, size: int, share: float, is_taken: bool) -> None:
        """What makes most of a pipe's life: one end writes, the other hears a part of it, and answers."""
        other = self.ends[self.ends[name].other]
        self.write(name, min(size, self.ends[name].session.writer.ring.free))
        self.send(name)
        self.deliver(other.name, share)
        if is_taken:
            other.take(1 << 16)
        self.send(other.name)
        self.deliver(name, share)

    @rule(dialer=shares, server=shares, is_healed=st.booleans())
    def cut(self, dialer: float, server: float, is_healed: bool) -> None:
        """Both ends lose the link, after a part of what they had to say has arrived."""
        self.send("dialer")
        self.send("server")
        for end, share in ((self.dialer, dialer), (self.server, server)):
            self.deliver(end.name, share)
            end.lose()
        if is_healed:
            self.dial(welcome_is_lost=False)

    @rule(name=ends)
    def lose(self, name: str) -> None:
        """One end loses the link, and the other does not know yet."""
        self.ends[name].lose()

    @rule(name=ends)
    def ack(self, name: str) -> None:
        self.ends[name].session.ack_soon()

    @rule(name=ends, seconds=st.sampled_from([HEARTBEAT, HEARTBEAT, 100.0]))
    def tick(self, name: str, seconds: float) -> None:
        """The heartbeat of a link: a PING, or the end of the link."""
        end = self.ends[name]
        self.now += seconds
        if end.link is not None:
            if end.session.liveness.tick(self.now) is Verdict.DEAD:
                end.lose()
            else:
                end.session.ping(self.now)

    # How links are made

    def hello(self) -> Hello:
        self.dials += 1
        hello = make_hello(PIPE, TOKEN, self.epoch, self.dials, self.dialer.session.reader.tell())
        self.hellos.append(hello)
        return hello

    def judge(self, hello: Hello) -> tuple[Link, Welcome] | Reject:
        """What a server does with a HELLO."""
        (frame,) = through_the_wire(hello)
        assert frame == hello
        refused = refuse_resume(hello, self.server)
        if refused is not None:
            return refused
        link = Link()
        self.server.attach(link, hello.generation, Ack(hello.position, hello.limit), self.now)
        return link, make_welcome(TOKEN, hello, EPOCH, self.server.session.reader.tell())

    @precondition(lambda self: self.dialer.link is None)
    @rule()
    def dial_in_vain(self) -> None:
        """The HELLO is lost, or late: then `hear_hello_again` brings it."""
        self.hello()

    @precondition(lambda self: self.dialer.link is None)
    @rule(welcome_is_lost=st.booleans())
    def dial(self, welcome_is_lost: bool) -> None:
        """A HELLO arrives, whatever the server thinks of the link that it had."""
        hello = self.hello()
        answer = self.judge(hello)
        assert not isinstance(answer, Reject), answer
        if not welcome_is_lost:
            self.welcome(hello, *answer)

    def welcome(self, hello: Hello, link: Link, welcome: Welcome) -> None:
        (frame,) = through_the_wire(welcome)
        assert frame == welcome
        check_welcome(TOKEN, hello, welcome)
        self.dialer.check_resume(welcome.position)
        self.epoch = welcome.epoch
        self.dialer.attach(link, hello.generation, Ack(welcome.position, welcome.limit), self.now)

    @precondition(lambda self: self.hellos)
    @rule(data=st.data())
    def hear_hello_again(self, data: st.DataObject) -> None:
        """A HELLO that is replayed or overtaken gets nothing; one that is only late gets a link that nobody uses."""
        hello = data.draw(st.sampled_from(self.hellos))
        is_new = hello.generation > self.server.generation
        answer = self.judge(hello)
        assert isinstance(answer, Reject) != is_new
        if isinstance(answer, Reject):
            assert answer.code == "replayed"

    # What is true at any time

    @invariant()
    def what_is_heard_is_a_beginning_of_what_was_said(self) -> None:
        for end in self.ends.values():
            reader, said = end.session.reader, self.ends[end.other].said
            assert end.heard == CONTENT[: len(end.heard)]
            assert len(end.heard) == reader.consumed
            assert reader.position <= said
            if reader.ended:
                assert reader.position == said
                assert self.ends[end.other].session.writer.finished

    @invariant()
    def bounds_hold(self) -> None:
        for end in self.ends.values():
            ring, other = end.session.writer.ring, self.ends[end.other]
            assert ring.size <= end.capacity
            assert ring.size == end.said - ring.start
            assert end.session.reader.unread <= end.capacity
            assert end.session.writer.acknowledged <= other.session.reader.position
            if end.session.writer.settled:
                assert other.session.reader.position == end.said
                assert other.session.reader.ended == end.session.writer.finished

    @invariant()
    def numbers_never_decrease(self) -> None:
        for name, end in self.ends.items():
            session = end.session
            mark = (
                session.writer.sequence,
                session.writer.acknowledged,
                session.reader.position,
                session.reader.acknowledgement.limit,
            )
            assert all(now >= before for now, before in zip(mark, self.marks[name], strict=True))
            self.marks[name] = mark

    def teardown(self) -> None:
        """With one good link, everything that was said is heard, and who has finished has finished."""
        if not hasattr(self, "ends"):
            return
        if self.dialer.link is None or self.dialer.link is not self.server.link:
            self.dialer.lose()
            self.dial(welcome_is_lost=False)
        self.pump()
        for end in self.ends.values():
            assert end.heard == CONTENT[: self.ends[end.other].said]
            assert end.session.writer.settled
            assert end.session.state is State.CONNECTED
        if self.dialer.session.finished:
            self.say_goodbye()

    def pump(self) -> None:
        link = self.dialer.link
        assert link is not None
        for _ in range(10_000):
            before = [(len(end.heard), end.session.writer.acknowledged) for end in self.ends.values()]
            for name, end in self.ends.items():
                end.session.ack_soon()
                self.send(name)
                self.deliver(end.other, 1.0)
                self.ends[end.other].take(1 << 16)
            after = [(len(end.heard), end.session.writer.acknowledged) for end in self.ends.values()]
            if before == after and not any(end.session.has_output for end in self.ends.values()):
                return
        raise AssertionError("the ends never fell silent")

    def say_goodbye(self) -> None:
        assert self.server.session.finished
        self.server.session.close("finished")
        frames = self.dialer.decoder.feed(self.server.session.next_output())
        self.dialer.session.apply(frames, lambda: self.now)
        assert self.dialer.session.state is State.CLOSED
        assert self.dialer.session.ended_by is None


def repeating(data: bytes, extra: int) -> bytes:
    """What a careless peer makes of its output: before new bytes it says some old ones again and again."""
    if not extra:
        return data
    output = b""
    for frame in Decoder().feed(data):
        if isinstance(frame, Data):
            start, end = max(0, frame.sequence - extra), frame.sequence + len(frame.payload)
            for stop in sorted({(start + frame.sequence) // 2, frame.sequence, end} - {start}):
                output += encode_data(start, stop - start) + CONTENT[start:stop]
        else:
            output += encode(frame)
    return output


def through_the_wire(frame: Hello | Welcome) -> list[Frame]:
    return Decoder().feed(encode(frame))


TestNoLoss = Machine.TestCase
TestNoLoss.settings = settings(max_examples=200, stateful_step_count=50, deadline=None)
