//! Waiting for packets, for a time, and for somebody who wakes us.
//!
//! What is waited on is registered once (epoll(7)), and the time is a timerfd that stays armed from wait to wait: to arm
//! a timer anew for each sleep costs as much as the sleep itself, on virtual machines most of all.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use crate::ports::{Place, Ports};
use crate::receive::Sockets;

const BELL: u64 = 0;
const TIMER: u64 = 1;
/// Sockets that receive, by their places.
const RECEIVING: u64 = 16;
/// A socket that sends.
const ROOM: u64 = 32;

/// What one thread waits with.
#[derive(Debug)]
pub(crate) struct Waiter {
    epoll: Epoll,
    bell: EventFd,
    timer: TimerFd,
}

/// What a thread knows of its own waiter's registrations.
#[derive(Debug, Default)]
pub(crate) struct Armed {
    /// When the timer rings.
    at: Option<Instant>,
    /// Where room in a sending socket is waited for.
    room: Option<Place>,
}

/// Why a wait has ended.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Woken {
    /// Where packets have come.
    pub(crate) come: Sockets,
    /// Whether a socket that sends takes more.
    pub(crate) room: bool,
}

impl Waiter {
    pub(crate) fn new(ports: &Ports) -> Result<Self, Errno> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let bell = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
        epoll.add(&bell, EpollEvent::new(EpollFlags::EPOLLIN, BELL))?;
        epoll.add(timer.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, TIMER))?;
        for (family, place) in ports.iter().zip(0..) {
            epoll.add(&family.receive, EpollEvent::new(EpollFlags::EPOLLIN, RECEIVING + place))?;
        }
        Ok(Self { epoll, bell, timer })
    }

    /// Readable when a wait would end.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }

    /// Ends the wait that is under way, or else the next.
    pub(crate) fn wake(&self) {
        // A full counter (EAGAIN) is readable already.
        let _ = self.bell.write(1);
    }

    /// Has the next wait end at `at`, and when the sending socket at `room`, which is full, takes more.
    pub(crate) fn prepare(&self, armed: &mut Armed, ports: &Ports, at: Option<Instant>, room: Option<Place>) {
        if armed.room != room {
            let before = std::mem::replace(&mut armed.room, room);
            if let Some(socket) = before.and_then(|place| ports.sending(place)) {
                let _ = self.epoll.delete(socket);
            }
            if let Some(socket) = room.and_then(|place| ports.sending(place)) {
                let _ = self.epoll.add(socket, EpollEvent::new(EpollFlags::EPOLLOUT, ROOM));
            }
        }
        if let Some(at) = at
            && armed.at.is_none_or(|armed| at < armed)
        {
            self.arm(at.saturating_duration_since(Instant::now()));
            armed.at = Some(at);
        }
    }

    /// Waits: until `at`, at the most for `most`, and until the sending socket at `room`, which is full, takes more.
    pub(crate) fn wait(
        &self,
        armed: &mut Armed,
        ports: &Ports,
        at: Option<Instant>,
        most: Option<Duration>,
        room: Option<Place>,
    ) -> Woken {
        self.prepare(armed, ports, at, room);
        // Milliseconds, rounded up: to return early would be to look in vain.
        let most = most.map_or(EpollTimeout::NONE, |most| {
            let milliseconds = most.as_nanos().div_ceil(1_000_000);
            EpollTimeout::try_from(milliseconds).unwrap_or(EpollTimeout::MAX)
        });
        let mut events = [EpollEvent::empty(); 8];
        let count = self.epoll.wait(&mut events, most).unwrap_or(0);
        let mut woken = Woken::default();
        for event in events.iter().take(count) {
            match event.data() {
                BELL => drop(self.bell.read()),
                TIMER => {
                    let _ = self.timer.wait();
                    armed.at = None;
                }
                place @ RECEIVING..ROOM => {
                    woken.come.insert(usize::try_from(place - RECEIVING).unwrap_or(usize::MAX));
                }
                _ => woken.room = true,
            }
        }
        woken
    }

    fn arm(&self, wait: Duration) {
        // A time of zero would disarm it.
        let wait = TimeSpec::from_duration(wait.max(Duration::from_nanos(1)));
        let _ = self.timer.set(Expiration::OneShot(wait), TimerSetTimeFlags::empty());
    }

    /// Waits only for somebody who wakes us, for at most `most`.
    pub(crate) fn stand_by(&self, most: Duration) {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        let timeout = PollTimeout::try_from(most).unwrap_or(PollTimeout::MAX);
        if poll(&mut [PollFd::new(self.bell.as_fd(), PollFlags::POLLIN)], timeout)
            .is_ok_and(|found| found > 0)
        {
            let _ = self.bell.read();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::options::SoftOptions;

    #[test]
    fn a_wait_ends_by_bell_and_by_time_and_by_packet() {
        let ports = Ports::open(&SoftOptions { port: Some(0), ..SoftOptions::default() }).unwrap();
        let waiter = Waiter::new(&ports).unwrap();
        let mut armed = Armed::default();
        waiter.wake();
        let woken = waiter.wait(&mut armed, &ports, None, None, None);
        assert!(woken.come.is_empty() && !woken.room);

        let begun = Instant::now();
        let at = begun + Duration::from_millis(5);
        waiter.wait(&mut armed, &ports, Some(at), None, None);
        assert!(begun.elapsed() >= Duration::from_millis(5) && armed.at.is_none());
        waiter.wait(&mut armed, &ports, None, Some(Duration::from_millis(1)), None);

        let port = ports.v4.as_ref().unwrap().port();
        std::net::UdpSocket::bind("127.0.0.1:0").unwrap().send_to(b"?", ("127.0.0.1", port)).unwrap();
        let woken = waiter.wait(&mut armed, &ports, None, None, None);
        assert!(!woken.come.is_empty() && !woken.room);
        let mut receiver = crate::socket::Receiver::default();
        ports.v4.as_ref().unwrap().receive.receive(&mut receiver, 1).unwrap();

        // There is room in a socket that has sent nothing.
        let (place, _) = ports.sender(Ipv4Addr::LOCALHOST.into()).unwrap();
        assert!(waiter.wait(&mut armed, &ports, None, None, Some(place)).room);
        let woken = waiter.wait(&mut armed, &ports, None, Some(Duration::from_millis(1)), None);
        assert!(woken.come.is_empty() && !woken.room);
    }
}
